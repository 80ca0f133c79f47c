/** For Jest only: the build compiles with tsc and Rspack. */
module.exports = {
  presets: ['@babel/preset-react', '@babel/preset-typescript'],
  plugins: ['@babel/plugin-transform-modules-commonjs']
};
