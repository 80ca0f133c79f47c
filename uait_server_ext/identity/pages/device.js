import { call, fromFragment, onSubmit } from './api.js';
import { proven } from './prove.js';

const id = name => document.getElementById(name);
const code = id('user_code');
code.value = fromFragment('user_code');

onSubmit(id('lookup'), async fields => {
  const request = await call('POST', '/me/devices/lookup', fields);
  id('client').textContent = request.client;
  id('address').textContent = request.address;
  id('scope').textContent = request.scope.join(', ') || 'nothing';
  id('lookup').hidden = true;
  id('decide').hidden = false;
  id('decide').querySelector('h2').focus();
});

onSubmit(id('decide'), async (_fields, button) => {
  const decision = button.value;
  await proven(() => call('POST', '/me/devices', { user_code: code.value, decision }));
  id('decide').hidden = true;
  id('done').hidden = false;
  id('done').textContent =
    decision === 'approve'
      ? 'It is logged in. Go back to your program; you may close this page.'
      : 'It was denied. You may close this page.';
});
