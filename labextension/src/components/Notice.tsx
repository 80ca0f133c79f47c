/** One line that says what happened and what to do, with at most one action. */
import React from 'react';

export interface INoticeProps {
  readonly kind: 'info' | 'warning' | 'error';
  readonly children: React.ReactNode;
  readonly action?: { readonly label: string; readonly run: () => void };
}

export function Notice({ kind, children, action }: INoticeProps): React.JSX.Element {
  return (
    <div
      className={`jp-uait-Notice jp-uait-mod-${kind}`}
      role={kind === 'error' ? 'alert' : undefined}
    >
      <span className="jp-uait-Notice-text">{children}</span>
      {action && (
        <button type="button" className="jp-uait-Button" onClick={action.run}>
          {action.label}
        </button>
      )}
    </div>
  );
}
