// Calls a sidecar as an application in Node.js would: the client is made from the .proto files when
// it starts. Prints what came back as JSON, for the test to judge.
//
//   node client.cjs ADDRESS PROTO_FOLDER

const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const [address, protoFolder] = process.argv.slice(2);

const definition = protoLoader.loadSync(['llmrouter/v1/routing.proto'], {
  includeDirs: [protoFolder],
  longs: Number,
  enums: String,
  defaults: true,
  oneofs: true,
});
const { RoutingService } = grpc.loadPackageDefinition(definition).llmrouter.v1;
const client = new RoutingService(address, grpc.credentials.createInsecure());

const ask = (text) => ({ messages: [{ role: 'ROLE_USER', parts: [{ text }] }] });
const deadline = () => ({ deadline: Date.now() + 20_000 });

const route = (request) =>
  new Promise((resolve) => {
    client.Route(request, deadline(), (error, response) => {
      resolve(error ? { code: error.code, details: error.details } : response.decision);
    });
  });

const streamRoute = (requests) =>
  new Promise((resolve, reject) => {
    const answers = {};
    const call = client.StreamRoute(deadline());
    call.on('data', (answer) => (answers[answer.requestId] = answer));
    call.on('error', reject);
    call.on('end', () => resolve(answers));
    for (const request of requests) call.write(request);
    call.end();
  });

const main = async () => {
  const result = {
    decision: await route(ask('Where is my invoice?')),
    refused: await route({ messages: [] }),
    stream: await streamRoute([
      { requestId: 'first', request: ask('Where is my invoice?') },
      { requestId: 'wrong', request: { messages: [] } },
      { requestId: 'last', request: ask('And the one before?') },
    ]),
  };
  console.log(JSON.stringify(result));
  client.close();
};

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
