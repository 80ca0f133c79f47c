import { EventStreamDecoder, readEvents } from '../api/sse';

const bytes = (text: string) => new TextEncoder().encode(text);

/** Decode `text` cut into pieces of `size` bytes. */
function decode(text: string, size: number): [string, string][] {
  const decoder = new EventStreamDecoder();
  const all = bytes(text);
  const events: [string, string][] = [];
  for (let at = 0; at < all.length; at += size) {
    for (const { event, data } of decoder.push(all.slice(at, at + size))) {
      events.push([event, data]);
    }
  }
  return events;
}

describe('EventStreamDecoder', () => {
  const stream =
    ': keep-alive\n\nevent: delta\ndata: {"text":"Grüße, 世界 🎉"}\n\n' +
    'event: done\r\ndata: one\r\ndata:two\r\n\r\ndata: plain\r\rid: 7\rretry\r\r';
  const expected = [
    ['delta', '{"text":"Grüße, 世界 🎉"}'],
    ['done', 'one\ntwo'],
    ['message', 'plain']
  ];

  it.each(Array.from({ length: 24 }, (_, index) => index + 1))(
    'gives the same events from pieces of %i bytes',
    size => {
      // The stream goes on: a carriage return at the very end waits for what follows.
      expect(decode(stream + ': more\n', size)).toEqual(expected);
    }
  );

  it('gives the same events wherever the stream is cut in two', () => {
    const all = bytes(stream + '\n');
    for (let cut = 0; cut <= all.length; cut++) {
      const decoder = new EventStreamDecoder();
      const events = [
        ...decoder.push(all.slice(0, cut)),
        ...decoder.push(all.slice(cut))
      ];
      expect(events.map(({ event, data }) => [event, data])).toEqual(expected);
    }
  });

  it('drops an event that the end of the stream cuts off', () => {
    expect(decode('event: delta\ndata: half', 5)).toEqual([]);
  });

  it('ignores the byte order mark and keeps a second leading space', () => {
    expect(decode('\ufeffdata:  x\n\n', 3)).toEqual([['message', ' x']]);
  });
});

describe('readEvents', () => {
  it('cancels the body when the reader stops early', async () => {
    const cancel = jest.fn();
    const body = new ReadableStream<Uint8Array>({
      start: controller => controller.enqueue(bytes('data: 1\n\ndata: 2\n\n')),
      cancel
    });
    for await (const { data } of readEvents(body)) {
      expect(data).toBe('1');
      break;
    }
    expect(cancel).toHaveBeenCalledTimes(1);
  });
});
