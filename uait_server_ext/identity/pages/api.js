// Calls the server's operations, and what every page's forms have in common.

export const base = document.body.dataset.baseUrl;
export const next = document.body.dataset.next;

export class Problem extends Error {
  constructor(problem, retryAfter) {
    super(problem.detail || problem.title || 'The server did not answer as expected. Try again.');
    this.code = problem.code;
    this.status = problem.status;
    this.retryAfter = retryAfter;
  }
}

function cookie(name) {
  const found = document.cookie.split('; ').find(one => one.startsWith(`${name}=`));
  return found ? decodeURIComponent(found.slice(name.length + 1)) : '';
}

export async function call(method, path, body) {
  const headers = { Accept: 'application/json', 'X-XSRFToken': cookie('_xsrf') };
  if (body !== undefined) {
    headers['Content-Type'] = 'application/json';
  }
  let response;
  try {
    response = await fetch(`${base}uait/v1${path}`, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: 'same-origin',
      redirect: 'error'
    });
  } catch {
    throw new Problem({ detail: 'The server cannot be reached. Check that it is running.' });
  }
  const text = await response.text();
  let answer = null;
  try {
    answer = text ? JSON.parse(text) : null;
  } catch {
    answer = {};
  }
  if (!response.ok) {
    throw new Problem(answer || {}, Number(response.headers.get('Retry-After')) || 0);
  }
  return answer;
}

export function say(place, text, kind = 'bad') {
  place.textContent = text;
  place.classList.toggle('bad', kind === 'bad' && text !== '');
  place.classList.toggle('good', kind === 'good');
}

// An error's text; whoever breaks off a passkey did nothing wrong and is told nothing of it.
export function explain(error) {
  if (error?.name === 'NotAllowedError' || error?.name === 'AbortError') {
    return 'Nothing was done: the request was cancelled or took too long.';
  }
  if (error?.name === 'InvalidStateError') {
    return 'This device has a passkey for this account already.';
  }
  return error instanceof Problem ? error.message : `This did not work: ${error.message}`;
}

// Run a form's work when it is sent: once at a time, with its error said where it is.
export function onSubmit(form, work) {
  form.addEventListener('submit', async event => {
    event.preventDefault();
    const message = form.querySelector('.message');
    const empty = [...form.elements].find(field => field.required && !field.value.trim());
    for (const field of form.elements) {
      field.removeAttribute('aria-invalid');
    }
    if (empty) {
      empty.setAttribute('aria-invalid', 'true');
      say(message, 'Please fill in what is missing.');
      empty.focus();
      return;
    }
    await run(message, form.querySelectorAll('button'), () =>
      work(Object.fromEntries(new FormData(form)), event.submitter)
    );
  });
}

export function onClick(button, message, work) {
  button.addEventListener('click', () => run(message, [button], work));
}

async function run(message, buttons, work) {
  say(message, '');
  buttons.forEach(button => (button.disabled = true));
  try {
    const done = await work();
    if (typeof done === 'string') {
      say(message, done, 'good');
    }
  } catch (error) {
    say(message, explain(error));
  } finally {
    buttons.forEach(button => (button.disabled = false));
  }
}

// Go on after a step of a login.
export function proceed(state) {
  if (state.state === 'second-factor') {
    location.assign(`${base}uait/second-factor?${new URLSearchParams({ next })}`);
  } else if (state.must_enrol) {
    location.assign(`${base}uait/account`);
  } else {
    location.assign(next);
  }
}

// The address at which a login through a provider begins; `to` is where it ends.
export function providerLogin(provider, to) {
  const query = new URLSearchParams({ next: to });
  return `${base}uait/v1/login/oidc/${encodeURIComponent(provider)}?${query}`;
}

// Read a value from the fragment and take it out of the address bar and the history.
export function fromFragment(name) {
  const value = new URLSearchParams(location.hash.slice(1)).get(name) || '';
  if (location.hash) {
    history.replaceState(null, '', location.pathname + location.search);
  }
  return value;
}
