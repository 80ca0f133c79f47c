import { LabIcon } from '@jupyterlab/ui-components';
import uaitSvg from '../style/icons/uait.svg';

export const uaitIcon = new LabIcon({ name: 'uait:logo', svgstr: uaitSvg });
