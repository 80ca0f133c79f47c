/** The plugins of UAIT; each can be disabled on its own. */
import ask from './plugins/ask';

export default [ask];
