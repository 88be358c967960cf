// Asks a sidecar for a model, and has an answer without it too.
//
//   npm install @grpc/grpc-js @grpc/proto-loader
//   node route.cjs ADDRESS DEFAULT_MODEL TEXT

const fs = require('fs');
const path = require('path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const proto = path.join(__dirname, '../../../proto');
const serviceConfig = fs.readFileSync(
  path.join(proto, 'llmrouter/v1/routing_grpc_service_config.json'), 'utf8');
const definition = protoLoader.loadSync('llmrouter/v1/routing.proto', { includeDirs: [proto] });
const { RoutingService } = grpc.loadPackageDefinition(definition).llmrouter.v1;

// Keep one for the life of the process: it holds the connection.
const models = (address, defaultModel) => {
  const client = new RoutingService(address, grpc.credentials.createInsecure(), {
    'grpc.service_config': serviceConfig,
    // A proxy that is meant for the internet knows nothing of a sidecar.
    'grpc.enable_http_proxy': 0,
  });
  // The model for a user's message; the default if the sidecar is away or late.
  const choose = (text) => new Promise((resolve) => {
    client.Route({ messages: [{ role: 'ROLE_USER', parts: [{ text }] }] }, (error, answer) => {
      if (error) console.error(`no routing: ${grpc.status[error.code]}`);
      resolve(error ? defaultModel : answer.decision.model.upstreamModel);
    });
  });
  return { choose, close: () => client.close() };
};

module.exports = { models };

if (require.main === module) {
  const [address, defaultModel, text] = process.argv.slice(2);
  const chosen = models(address, defaultModel);
  chosen.choose(text).then((model) => {
    console.log(model);
    chosen.close();
  });
}
