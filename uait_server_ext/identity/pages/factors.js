// The account page's second factors.

import { call, onSubmit, Problem } from './api.js';
import { makePasskey, supported } from './passkeys.js';
import { proven } from './prove.js';
import { id, remove, row, when } from './rows.js';

const confirmation = id('confirm-totp');
let waiting = '';

export async function listFactors() {
  const factors = await call('GET', '/me/factors');
  const message = document.querySelector('#renew-codes .message');
  const rows = [
    ...factors.totp.map(one => ['Authenticator app', `since ${when(one.created_at)}`, one]),
    ...factors.passkeys.map(one => ['Passkey', `last used ${when(one.last_used_at)}`, one])
  ];
  id('factor-list').replaceChildren(
    ...rows.map(([kind, detail, one]) =>
      row(one.name, `${kind} · ${detail}`, remove('Remove', message, `/me/factors/${one.id}`, listFactors))
    )
  );
  id('renew-codes').hidden = rows.length === 0;
  id('codes-left').textContent = `${factors.recovery_codes_left} recovery codes left.`;
}

function showCodes(codes) {
  id('codes').hidden = codes.length === 0;
  id('code-list').replaceChildren(
    ...codes.map(code => {
      const item = document.createElement('li');
      item.textContent = code;
      return item;
    })
  );
  if (codes.length) {
    id('codes').querySelector('h3').focus();
  }
}

async function added(codes) {
  showCodes(codes);
  await listFactors();
  if (id('rest').hidden) {
    // What was closed until now is open: the page is read again once the codes were noted.
    const on = document.createElement('a');
    on.className = 'button';
    on.href = location.pathname;
    on.textContent = 'Go on';
    id('codes').append(on);
    id('codes').hidden = false;
    id('must-enrol').hidden = true;
  }
}

onSubmit(id('add-totp'), async fields => {
  const begun = await proven(() => call('POST', '/me/factors/totp', fields));
  waiting = begun.id;
  id('qr').src = `data:image/svg+xml,${encodeURIComponent(begun.qr_svg)}`;
  id('totp-secret').textContent = begun.secret;
  confirmation.hidden = false;
  confirmation.querySelector('h3').focus();
});

onSubmit(confirmation, async ({ code }) => {
  const answer = await proven(() =>
    call('POST', `/me/factors/totp/${waiting}/confirm`, { code })
  );
  confirmation.reset();
  confirmation.hidden = true;
  id('qr').removeAttribute('src');
  id('totp-secret').textContent = '';
  await added(answer.recovery_codes);
});

onSubmit(id('add-passkey'), async ({ name }) => {
  if (!supported) {
    throw new Problem({ detail: 'This browser makes no passkeys here. Open the server over https.' });
  }
  const options = await proven(() => call('POST', '/me/factors/passkeys/options'));
  const credential = await makePasskey(options);
  const answer = await proven(() => call('POST', '/me/factors/passkeys', { name, credential }));
  await added(answer.recovery_codes);
  return 'Added. From now on it logs you in.';
});

onSubmit(id('renew-codes'), async () => {
  const answer = await proven(() => call('POST', '/me/factors/recovery-codes'));
  showCodes(answer.recovery_codes);
  await listFactors();
});
