import { call, onSubmit, proceed } from './api.js';
import { usePasskey } from './passkeys.js';

for (const form of document.querySelectorAll('form')) {
  const { method } = form.dataset;
  onSubmit(form, async fields => {
    try {
      proceed(
        method === 'passkey' ? await usePasskey() : await call('POST', `/login/${method}`, fields)
      );
    } catch (error) {
      if (form.elements.code) {
        form.elements.code.value = '';
        form.elements.code.focus();
      }
      throw error;
    }
  });
}
