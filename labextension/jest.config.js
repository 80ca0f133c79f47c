// Packages that ship ES modules, which Jest compiles before it runs them.
const esModules = [
  '@codemirror',
  '@jupyter',
  '@jupyterlab',
  '@lumino',
  '@microsoft',
  '@rjsf',
  'exenv-es6',
  'lib0',
  'marked',
  'nanoid',
  'vscode-ws-jsonrpc',
  'y-protocols',
  'y-websocket',
  'yjs'
].join('|');

module.exports = {
  testEnvironment: './src/__tests__/support/browser.js',
  testMatch: ['<rootDir>/src/__tests__/**/*.spec.ts?(x)'],
  transform: { '\\.[jt]sx?$': 'babel-jest' },
  transformIgnorePatterns: [`/node_modules/(?!(${esModules})/)`],
  moduleNameMapper: {
    '\\.css$': '<rootDir>/src/__tests__/support/empty.js',
    '\\.svg$': '<rootDir>/src/__tests__/support/svg.js'
  },
  collectCoverageFrom: ['src/**/*.{ts,tsx}', '!src/api/schema.ts', '!src/__tests__/**'],
  coverageThreshold: { global: { statements: 85, branches: 80 } },
  restoreMocks: true
};
