// The account page's API keys.

import { call, onSubmit } from './api.js';
import { id, remove, row, when } from './rows.js';

const message = document.querySelector('#add-key .message');

async function list() {
  const { keys } = await call('GET', '/me/keys');
  id('key-list').replaceChildren(
    ...keys.map(key =>
      row(
        `${key.name} (${key.prefix}…)`,
        `${key.permissions.join(', ')} · expires ${when(key.expires_at)} · last used ${when(key.last_used_at)}`,
        remove('Revoke', message, `/me/keys/${key.id}`, list)
      )
    )
  );
}

const lines = text => text.split('\n').map(line => line.trim()).filter(Boolean);

export async function listKeys(me, proven) {
  id('permissions').replaceChildren(
    ...me.permissions.map(permission => {
      const label = document.createElement('label');
      const box = document.createElement('input');
      box.type = 'checkbox';
      box.name = 'permissions';
      box.value = permission;
      label.append(box, permission);
      return label;
    })
  );
  onSubmit(id('add-key'), async () => {
    const form = new FormData(id('add-key'));
    const made = await proven(() =>
      call('POST', '/me/keys', {
        name: form.get('name'),
        permissions: form.getAll('permissions'),
        expires_in_days: Number(form.get('expires_in_days')),
        networks: lines(form.get('networks')),
        routes: lines(form.get('routes')),
        signing: form.has('signing')
      })
    );
    id('key-secret').textContent = made.key;
    id('signing').hidden = !made.signing_secret;
    id('signing-secret').textContent = made.signing_secret || '';
    id('new-key').hidden = false;
    id('new-key').querySelector('h3').focus();
    id('add-key').reset();
    await list();
  });
  await list();
}
