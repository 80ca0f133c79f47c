/** Where the question is written: Enter asks, Shift+Enter starts a line, one button asks or stops. */
import React, { useId, useState } from 'react';
import { usePanel } from '../panels/context';

export interface IQuestionBoxProps {
  /** Whether an answer is coming: the button stops it. */
  readonly busy: boolean;
  /** Why nothing can be asked now; empty where it can. */
  readonly blocked: string;
  readonly inputRef: React.RefObject<HTMLTextAreaElement>;
  readonly onAsk: (question: string) => void;
  readonly onStop: () => void;
}

export function QuestionBox(props: IQuestionBoxProps): React.JSX.Element {
  const { trans } = usePanel();
  const { busy, blocked, inputRef, onAsk, onStop } = props;
  const [text, setText] = useState('');
  const hintId = useId();
  const ready = !busy && !blocked && text.trim() !== '';

  const ask = () => {
    if (ready) {
      onAsk(text.trim());
      setText('');
    }
  };
  const onKeyDown = (event: React.KeyboardEvent) => {
    // While an input method composes, Enter accepts its proposal.
    if (event.key === 'Enter' && !event.shiftKey && !event.nativeEvent.isComposing) {
      event.preventDefault();
      ask();
    } else if (event.key === 'Escape' && busy) {
      event.preventDefault();
      onStop();
    }
  };
  const press = () => {
    if (busy) {
      onStop();
    } else {
      ask();
    }
    inputRef.current?.focus();
  };
  return (
    <div className="jp-uait-QuestionBox">
      <textarea
        ref={inputRef}
        className="jp-mod-styled"
        rows={3}
        value={text}
        aria-label={trans.__('Question')}
        aria-describedby={hintId}
        placeholder={blocked || trans.__('Ask a question about your documents')}
        onChange={event => setText(event.target.value)}
        onKeyDown={onKeyDown}
      />
      <div className="jp-uait-QuestionBox-foot">
        <span id={hintId} className="jp-uait-hint">
          {busy
            ? trans.__('Escape stops the answer')
            : trans.__('Enter asks, Shift+Enter starts a new line')}
        </span>
        <button
          type="button"
          className="jp-uait-Button jp-uait-mod-primary"
          aria-disabled={!busy && !ready}
          onClick={press}
        >
          {busy ? trans.__('Stop') : trans.__('Ask')}
        </button>
      </div>
    </div>
  );
}
