// Changes policies of a sidecar as a tool in Node.js would. Prints what came back as JSON, for the
// test to judge.
//
//   node policies.cjs ADDRESS PROTO_FOLDER

const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const [address, protoFolder] = process.argv.slice(2);

const definition = protoLoader.loadSync(['llmrouter/v1/policy.proto'], {
  includeDirs: [protoFolder],
  longs: Number,
  enums: String,
  defaults: true,
  oneofs: true,
});
const { PolicyService } = grpc.loadPackageDefinition(definition).llmrouter.v1;
const client = new PolicyService(address, grpc.credentials.createInsecure());

const deadline = () => ({ deadline: Date.now() + 20_000 });

const call = (method, request) =>
  new Promise((resolve) => {
    client[method](request, deadline(), (error, response) => {
      resolve(error ? { code: error.code, details: error.details } : response);
    });
  });

// Reads `count` changes after one and ends the call.
const watch = (afterChange, count) =>
  new Promise((resolve, reject) => {
    const seen = [];
    const stream = client.WatchPolicies({ parent: 'namespaces/-', afterChange }, deadline());
    stream.on('data', (message) => {
      seen.push({ number: message.changeNumber, revision: message.policy?.revision });
      if (seen.length === count) stream.cancel();
    });
    stream.on('error', (error) => (seen.length === count ? resolve(seen) : reject(error)));
    stream.on('end', () => resolve(seen));
  });

const name = 'namespaces/default/policies/node';
const note = { author: 'node', message: 'from JavaScript' };
const models = { models: [{ model: 'acme/fast' }] };
const policy = {
  description: 'first',
  routes: [{ name: 'billing', description: 'invoices', models }],
  defaultModels: models,
};

const main = async () => {
  const parent = 'namespaces/default';
  const created = await call('CreatePolicy', { parent, policyId: 'node', policy, note });
  const changed = { ...policy, name, description: 'second', etag: created.etag };
  const updated = await call('UpdatePolicy', { policy: changed, note });
  const conflict = await call('UpdatePolicy', { policy: changed, note });
  const before = await watch(0, 3);
  const rolledBack = await call('RollbackPolicy', { name, revision: 1, note });
  const resumed = await watch(before.at(-1).number, 2);
  console.log(JSON.stringify({ created, updated, conflict, rolledBack, before, resumed }));
  client.close();
};

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
