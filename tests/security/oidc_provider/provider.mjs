// An independent OpenID provider for the tests: prints its issuer when it listens on a free port of
// this machine. Arguments: client id, client secret, redirect URIs. Who logs in as NAME with any
// password is NAME@example.org; a name that begins with "unverified" has no verified e-mail.
import { createServer } from "node:http";
import { Provider } from "oidc-provider";

const [clientId, clientSecret, ...redirectUris] = process.argv.slice(2);

const server = createServer((request, response) => handle(request, response));
let handle;

server.listen(0, "127.0.0.1", () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: [
      {
        client_id: clientId,
        client_secret: clientSecret,
        application_type: "native",
        redirect_uris: redirectUris,
      },
    ],
    pkce: { required: () => true },
    claims: {
      openid: ["sub"],
      email: ["email", "email_verified"],
      profile: ["name", "preferred_username"],
    },
    cookies: { keys: ["a key for the tests"] },
    findAccount: (_context, id) => ({
      accountId: id,
      claims: () => ({
        sub: id,
        email: `${id}@example.org`,
        email_verified: !id.startsWith("unverified"),
        name: `The ${id}`,
        preferred_username: id,
      }),
    }),
  });
  handle = provider.callback();
  console.log(`issuer ${issuer}`);
});

// The tests hold our standard input open; when they end, however they end, so do we.
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
