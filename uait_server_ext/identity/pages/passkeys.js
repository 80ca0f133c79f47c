// Passkeys: between the JSON of our operations and the buffers of `navigator.credentials`.

import { call } from './api.js';

export const supported = 'credentials' in navigator && 'PublicKeyCredential' in window;

function decode(text) {
  const plain = atob(text.replace(/-/g, '+').replace(/_/g, '/'));
  return Uint8Array.from(plain, letter => letter.charCodeAt(0));
}

function encode(buffer) {
  const plain = String.fromCharCode(...new Uint8Array(buffer));
  return btoa(plain).replace(/\+/g, '-').replace(/\//g, '_').replace(/=+$/, '');
}

const decodeIds = list => (list || []).map(one => ({ ...one, id: decode(one.id) }));

function asJson(credential, response) {
  return {
    id: credential.id,
    rawId: encode(credential.rawId),
    type: credential.type,
    authenticatorAttachment: credential.authenticatorAttachment,
    clientExtensionResults: credential.getClientExtensionResults(),
    response: { clientDataJSON: encode(credential.response.clientDataJSON), ...response }
  };
}

export async function makePasskey(options) {
  const credential = await navigator.credentials.create({
    publicKey: {
      ...options,
      challenge: decode(options.challenge),
      user: { ...options.user, id: decode(options.user.id) },
      excludeCredentials: decodeIds(options.excludeCredentials)
    }
  });
  const { response } = credential;
  return asJson(credential, {
    attestationObject: encode(response.attestationObject),
    transports: response.getTransports ? response.getTransports() : []
  });
}

// Log in, give a second factor or prove who one is: all of them are one ceremony.
export async function usePasskey() {
  const options = await call('POST', '/login/passkey/options');
  const credential = await navigator.credentials.get({
    publicKey: {
      ...options,
      challenge: decode(options.challenge),
      allowCredentials: decodeIds(options.allowCredentials)
    }
  });
  const { response } = credential;
  return call('POST', '/login/passkey', {
    credential: asJson(credential, {
      authenticatorData: encode(response.authenticatorData),
      signature: encode(response.signature),
      userHandle: response.userHandle ? encode(response.userHandle) : null
    })
  });
}
