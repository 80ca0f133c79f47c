import { call, explain, onClick, onSubmit, Problem, say } from './api.js';
import { proven } from './prove.js';
import { listFactors } from './factors.js';
import { listKeys } from './keys.js';
import { id, remove, row, when } from './rows.js';

async function showProfile() {
  const me = await call('GET', '/me');
  id('username').textContent = me.username;
  id('roles').textContent = me.roles.length ? `with the role ${me.roles.join(', ')}` : 'no role';
  id('display_name').value = me.display_name;
  id('change-password').hidden = !me.has_password; // who logs in elsewhere has none to change
  return me;
}

onSubmit(id('profile'), async fields => {
  await call('PATCH', '/me', fields);
  return 'Saved.';
});

onSubmit(id('password'), async ({ current, new: fresh, again }) => {
  if (fresh !== again) {
    id('again').focus();
    throw new Problem({ detail: 'The two passwords are not the same.' });
  }
  await call('POST', '/me/password', { current, new: fresh });
  id('password').reset();
  await listSessions();
  return 'Changed. You are logged out everywhere else.';
});

async function listSessions() {
  const message = id('session-message');
  const { sessions } = await call('GET', '/me/sessions');
  id('session-list').replaceChildren(
    ...sessions.map(one =>
      row(
        one.current ? 'This browser' : one.user_agent || 'A browser',
        `${one.factors.join(' + ')} · ${one.address} · last seen ${when(one.last_seen_at)}`,
        one.current ? null : remove('End', message, `/me/sessions/${one.id}`, listSessions)
      )
    )
  );
  const { devices } = await call('GET', '/me/devices');
  id('device-list').replaceChildren(
    ...devices.map(one =>
      row(
        one.client,
        `program · last used ${when(one.last_used_at)}`,
        remove('Log out', message, `/me/devices/${one.id}`, listSessions)
      )
    )
  );
}

async function listAccounts() {
  const { accounts } = await call('GET', '/me/accounts');
  const { providers } = await call('GET', '/login/methods');
  id('accounts').hidden = !accounts.length && !providers.length;
  id('account-list').replaceChildren(
    ...accounts.map(one =>
      row(
        one.label,
        `${one.name} · since ${when(one.linked_at)}`,
        remove('Unlink', id('account-message'), `/me/accounts/${one.provider}`, listAccounts)
      )
    )
  );
  const linked = new Set(accounts.map(one => one.provider));
  id('link-buttons').replaceChildren(
    ...providers
      .filter(one => !linked.has(one.id))
      .map(one => {
        const button = document.createElement('button');
        button.type = 'button';
        button.className = 'plain';
        button.textContent = `Link ${one.name}`;
        onClick(button, id('account-message'), async () => {
          const path = `/me/accounts/${encodeURIComponent(one.id)}/link`;
          location.assign((await proven(() => call('POST', path))).url);
        });
        return button;
      })
  );
}

const shown = [
  [listFactors, '#factors .message'],
  ...(id('rest').hidden
    ? []
    : [
        [listSessions, '#session-message'],
        [async () => listKeys(await showProfile(), proven), '#add-key .message'],
        [listAccounts, '#account-message']
      ])
];
for (const [list, place] of shown) {
  list().catch(error => say(document.querySelector(place), explain(error)));
}
