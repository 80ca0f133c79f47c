/** Reads Server-Sent Events (WHATWG HTML, 9.2) from the body of a fetch response. */

export interface IServerSentEvent {
  readonly event: string;
  readonly data: string;
}

/** Turns bytes, cut anywhere, into events. What the stream's end cuts off is dropped. */
export class EventStreamDecoder {
  /** Return the events that `chunk` completes. */
  push(chunk: Uint8Array): IServerSentEvent[] {
    this._text += this._utf8.decode(chunk, { stream: true });
    const events: IServerSentEvent[] = [];
    for (const line of this._completeLines()) {
      const event = this._takeLine(line);
      if (event) {
        events.push(event);
      }
    }
    return events;
  }

  private _completeLines(): string[] {
    // A carriage return at the end may be the first half of CRLF: it waits for the next chunk.
    const held = this._text.endsWith('\r') ? 1 : 0;
    const usable = this._text.slice(0, this._text.length - held);
    const lines = usable.split(/\r\n|\n|\r/);
    const rest = lines.pop() ?? '';
    this._text = rest + this._text.slice(this._text.length - held);
    return lines;
  }

  private _takeLine(line: string): IServerSentEvent | null {
    if (line === '') {
      const event = this._data.length
        ? { event: this._event || 'message', data: this._data.join('\n') }
        : null;
      this._event = '';
      this._data = [];
      return event;
    }
    const colon = line.indexOf(':');
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (field === 'event') {
      this._event = value;
    } else if (field === 'data') {
      this._data.push(value);
    }
    return null;
  }

  private _utf8 = new TextDecoder();
  private _text = '';
  private _event = '';
  private _data: string[] = [];
}

/** Yield the events of a response body; leaving the loop early cancels the request. */
export async function* readEvents(
  body: ReadableStream<Uint8Array>
): AsyncGenerator<IServerSentEvent, void, undefined> {
  const reader = body.getReader();
  const decoder = new EventStreamDecoder();
  let ended = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        ended = true;
        return;
      }
      yield* decoder.push(value);
    }
  } finally {
    if (!ended) {
      // The stream may already be in error (an abort): then there is nothing left to cancel.
      await reader.cancel().catch(() => undefined);
    }
  }
}
