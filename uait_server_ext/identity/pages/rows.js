// Rows of a list with one thing to do about each.

import { call, onClick } from './api.js';
import { proven } from './prove.js';

export const id = name => document.getElementById(name);

export function when(seconds) {
  return seconds ? new Date(seconds * 1000).toLocaleString() : 'never';
}

export function row(title, detail, button) {
  const item = document.createElement('li');
  const text = document.createElement('div');
  const small = document.createElement('small');
  text.textContent = title;
  small.textContent = detail;
  text.append(small);
  item.append(text);
  if (button) {
    button.setAttribute('aria-label', `${button.textContent}: ${title}`);
    item.append(button);
  }
  return item;
}

export function remove(label, message, path, after) {
  const button = document.createElement('button');
  button.type = 'button';
  button.className = 'plain';
  button.textContent = label;
  onClick(button, message, async () => {
    await proven(() => call('DELETE', path));
    await after();
  });
  return button;
}
