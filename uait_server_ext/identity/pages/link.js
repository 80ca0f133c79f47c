import { call, fromFragment, onSubmit, Problem, proceed, say } from './api.js';

const form = document.getElementById('link');
const secret = fromFragment('secret');

if (!secret) {
  say(
    form.querySelector('.message'),
    'The link is not complete: nothing follows its #. Copy all of it into the address bar.'
  );
}

onSubmit(form, async ({ again, ...fields }) => {
  if (fields.password !== again) {
    form.elements.again.setAttribute('aria-invalid', 'true');
    form.elements.again.focus();
    throw new Problem({ detail: 'The two passwords are not the same.' });
  }
  if (!fields.display_name) {
    delete fields.display_name;
  }
  proceed(await call('POST', `/${document.body.dataset.purpose}`, { secret, ...fields }));
});
