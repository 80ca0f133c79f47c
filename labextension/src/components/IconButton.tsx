/** A button that shows only an icon; its label is read aloud and shown on hover. */
import type { LabIcon } from '@jupyterlab/ui-components';
import React from 'react';

export interface IIconButtonProps {
  readonly icon: LabIcon;
  readonly label: string;
  readonly onClick: () => void;
  readonly disabled?: boolean;
  readonly expanded?: boolean;
}

export function IconButton(props: IIconButtonProps): React.JSX.Element {
  const { icon: Icon, label, onClick, disabled, expanded } = props;
  return (
    <button
      type="button"
      className="jp-uait-IconButton"
      aria-label={label}
      aria-expanded={expanded}
      title={label}
      disabled={disabled}
      onClick={onClick}
    >
      <Icon.react tag="span" aria-hidden="true" elementSize="normal" />
    </button>
  );
}
