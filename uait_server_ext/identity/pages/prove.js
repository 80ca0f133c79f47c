// Ask for a fresh proof of who is there, where an operation needs one, and do it again.

import { call, explain, Problem, providerLogin, say } from './api.js';
import { supported, usePasskey } from './passkeys.js';

const id = name => document.getElementById(name);
const dialog = id('prove');
const message = dialog.querySelector('.message');

export async function proven(work) {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof Problem) || error.code !== 'reauthenticate') {
      throw error;
    }
  }
  await prove();
  return work();
}

// Who has nothing but an account elsewhere logs in there again and comes back to this page.
async function providerLinks() {
  const { accounts } = await call('GET', '/me/accounts');
  return accounts.map(one => {
    const link = document.createElement('a');
    link.className = 'button plain';
    link.textContent = `Log in with ${one.name} again`;
    link.href = providerLogin(one.provider, location.pathname);
    return link;
  });
}

async function prove() {
  const factors = await call('GET', '/me/factors');
  const byCode = factors.totp.length > 0;
  const byPasskey = factors.passkeys.length > 0 && supported;
  const byPassword =
    !byCode && !factors.passkeys.length && (await call('GET', '/me')).has_password;
  id('prove-code').hidden = !byCode;
  id('prove-password').hidden = !byPassword;
  id('prove-passkey').hidden = !byPasskey;
  dialog.querySelector('[value=prove]').hidden = !byCode && !byPassword;
  const byProvider = !byCode && !factors.passkeys.length && !byPassword;
  id('prove-providers').replaceChildren(...(byProvider ? await providerLinks() : []));
  say(message, '');
  dialog.showModal();
  return new Promise((resolve, reject) => {
    const end = settle => () => {
      stop.abort();
      dialog.querySelector('form').reset();
      dialog.close();
      settle();
    };
    const stop = new AbortController();
    const { signal } = stop;
    const cancelled = end(() => reject(new Problem({ detail: 'Nothing was done: it needs a fresh proof.' })));
    const attempt = async give => {
      try {
        await give();
        end(resolve)();
      } catch (error) {
        say(message, explain(error));
      }
    };
    dialog.addEventListener('cancel', event => (event.preventDefault(), cancelled()), { signal });
    id('prove-cancel').addEventListener('click', cancelled, { signal });
    id('prove-passkey').addEventListener('click', () => attempt(usePasskey), { signal });
    dialog.querySelector('form').addEventListener(
      'submit',
      event => {
        event.preventDefault();
        const body = byCode
          ? { code: id('prove-number').value }
          : { password: id('prove-secret').value };
        attempt(() => call('POST', '/me/reauthenticate', body));
      },
      { signal }
    );
  });
}
