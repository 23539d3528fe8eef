// Asks a node by both calls and prints, as JSON, what each answered: client.js HOST:PORT PROTO_DIR PROMPT
// Nothing here knows of Conclave but the .proto files.
'use strict';

const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [address, protos, prompt] = process.argv.slice(2);
const definition = loader.loadSync(['node/v1/generate.proto', 'node/v1/mesh.proto'], {
  includeDirs: [protos],
  keepCase: true,
  longs: String,
  enums: String,
  defaults: true,
  oneofs: true,
});
const { Generate, Mesh } = grpc.loadPackageDefinition(definition).node.v1;
const credentials = grpc.credentials.createInsecure(); // a node's local listener is on loopback only
const generate = new Generate(address, credentials);
const mesh = new Mesh(address, credentials);

const deadline = () => ({ deadline: Date.now() + 30000 });
const request = (content) => ({ messages: [{ role: 'user', content }], strategy: 'quality' });

function unary(client, method, message) {
  return new Promise((resolve, reject) => {
    client[method](message, deadline(), (error, response) => (error ? reject(error) : resolve(response)));
  });
}

async function stream(message) {
  const events = [];
  for await (const event of generate.Stream({ request: message }, deadline())) {
    events.push(event);
  }
  return events;
}

async function refused(message) {
  try {
    await unary(generate, 'Generate', message);
  } catch (error) {
    return { code: grpc.status[error.code], details: error.details };
  }
  return null;
}

async function main() {
  const status = await unary(mesh, 'Status', {});
  const answer = await unary(generate, 'Generate', request(prompt));
  const events = await stream(request(prompt));
  const error = await refused(request(''));
  process.stdout.write(`${JSON.stringify({ status, answer, events, error }, null, 1)}\n`);
}

main()
  .catch((error) => {
    process.stderr.write(`${error.message}\n`);
    process.exitCode = 1;
  })
  .finally(() => {
    generate.close();
    mesh.close();
  });
