/** State outside React: it survives the panel being moved, and tests drive it without a DOM. */
import { useSyncExternalStore } from 'react';

/** Holds one immutable value and tells listeners when it is replaced. */
export class Store<T> {
  constructor(initial: T) {
    this._value = initial;
  }

  readonly get = (): T => this._value;

  readonly subscribe = (listener: () => void): (() => void) => {
    this._listeners.add(listener);
    return () => this._listeners.delete(listener);
  };

  /** Replace the value. */
  set(value: T): void {
    if (value !== this._value) {
      this._value = value;
      this._listeners.forEach(listener => listener());
    }
  }

  /** Replace some members of the value. */
  patch(part: Partial<T>): void {
    this.set({ ...this._value, ...part });
  }

  private _value: T;
  private readonly _listeners = new Set<() => void>();
}

/** Render again whenever the store's value is replaced. */
export function useStore<T>(store: Store<T>): T {
  return useSyncExternalStore(store.subscribe, store.get);
}
