/** Names for the shapes of the HTTP API; every one comes from the generated schema. */
import type { components, operations, paths } from './schema';

type Schemas = components['schemas'];
type Streamed<Name extends 'ask' | 'ingest'> =
  operations[Name]['responses'][200]['content']['application/json'];

export type ApiPath = keyof paths;

export type Answer = Schemas['Answer'];
export type AskEvent = Streamed<'ask'>;
export type AskRequest = Schemas['AskRequest'];
export type Citation = Schemas['Citation'];
export type CollectionList = Schemas['CollectionList'];
export type CollectionStatus = Schemas['CollectionStatus'];
export type FileReport = Schemas['FileReport'];
export type IngestDone = Schemas['IngestDone'];
export type IngestEvent = Streamed<'ingest'>;
export type IngestRequest = Schemas['IngestRequest'];
export type ModelInfo = Schemas['ModelInfo'];
export type ModelList = Schemas['ModelList'];
export type Problem = Schemas['Problem'];
