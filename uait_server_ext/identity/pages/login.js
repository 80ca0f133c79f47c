import { call, next, onClick, onSubmit, proceed, providerLogin } from './api.js';
import { supported, usePasskey } from './passkeys.js';

const id = name => document.getElementById(name);
const others = id('others');

onSubmit(id('password'), async fields => {
  try {
    proceed(await call('POST', '/login', fields));
  } catch (error) {
    id('secret').value = '';
    id('secret').focus();
    throw error;
  }
});

onClick(id('passkey'), others.querySelector('.message'), async () => proceed(await usePasskey()));

const methods = await call('GET', '/login/methods');
id('setup').hidden = !methods.setup_needed;
id('passkey').hidden = !(methods.passkeys && supported);
for (const provider of methods.providers) {
  const link = document.createElement('a');
  link.className = 'button plain';
  link.textContent = `Log in with ${provider.name}`;
  link.href = providerLogin(provider.id, next);
  id('providers').append(link);
}
others.hidden = id('passkey').hidden && !methods.providers.length;
