import { base, call, onSubmit } from './api.js';

onSubmit(document.getElementById('logout'), async () => {
  await call('POST', '/logout');
  location.assign(`${base}login`);
});
