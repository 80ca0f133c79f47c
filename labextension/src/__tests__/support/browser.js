/** jsdom with what browsers have and jsdom lacks: fetch, streams, text codecs, ... */
const { TestEnvironment } = require('jest-environment-jsdom');

module.exports = class extends TestEnvironment {
  async setup() {
    await super.setup();
    Object.assign(this.global, {
      fetch,
      Headers,
      ReadableStream,
      Request,
      Response,
      TextDecoder,
      TextEncoder,
      DragEvent: class extends this.global.MouseEvent {},
      matchMedia: () => ({ matches: false, addListener: () => undefined }),
      requestIdleCallback: run => setTimeout(run),
      // fetch takes only signals of its own realm
      AbortController,
      AbortSignal
    });
  }
};
