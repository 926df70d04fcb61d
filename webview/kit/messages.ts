import type { Answer, StopAnswer } from '../../engine/queries/answers.ts';
import { parseShowTable, type ShowTable, type ViewEvent } from '../../engine/queries/protocol.ts';

const ANSWER_KINDS = [
  'walk',
  'table',
  'roots',
  'slots',
  'costs',
  'root-cache',
  'history',
  'recording',
  'faults',
  'comparison',
  'attribute-map',
  'attributes',
  'page',
  'error',
];

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isAnswer(value: unknown): value is Answer {
  if (!isRecord(value) || typeof value.kind !== 'string' || !ANSWER_KINDS.includes(value.kind)) return false;
  switch (value.kind) {
    case 'walk':
      return Array.isArray(value.references) && Array.isArray(value.fields) && isRecord(value.outcome);
    case 'table':
      return Array.isArray(value.runs) && isRecord(value.query);
    case 'roots':
      return Array.isArray(value.roots);
    case 'root-cache':
      return Array.isArray(value.vcpus) && Array.isArray(value.pages) && Array.isArray(value.moments);
    case 'recording':
      return isRecord(value.buckets) && Array.isArray(value.lost) && Array.isArray(value.problems);
    case 'faults':
      return Array.isArray(value.rows);
    case 'comparison':
      return Array.isArray(value.columns) && Array.isArray(value.rows) && Array.isArray(value.tables);
    case 'attribute-map':
      return Array.isArray(value.slots) && Array.isArray(value.stages) && Array.isArray(value.moments);
    case 'attributes':
      return Array.isArray(value.facts) && Array.isArray(value.runs);
    case 'page':
      return Array.isArray(value.rows);
    case 'error':
      return typeof value.message === 'string';
    default:
      return true;
  }
}

function isStop(value: unknown): value is StopAnswer {
  return isRecord(value) && typeof value.sentence === 'string' && typeof value.reason === 'string';
}

/**
 * What arrived in the page as an event of the session, or from another view; undefined for anything else. Checks what tells one event or
 * answer from another; their insides come from the adapter, which made them from the same types.
 */
export function parseEvent(message: unknown): ViewEvent | ShowTable | undefined {
  if (!isRecord(message)) return undefined;
  switch (message.type) {
    case 'running':
    case 'ended':
      return { type: message.type };
    case 'stopped':
      return isStop(message.stop) ? { type: 'stopped', stop: message.stop } : undefined;
    case 'changed': {
      if (!Array.isArray(message.answers)) return undefined;
      const answers = message.answers.flatMap((each: unknown) =>
        isRecord(each) && typeof each.id === 'string' && isAnswer(each.answer)
          ? [{ id: each.id, answer: each.answer }]
          : [],
      );
      return { type: 'changed', answers };
    }
    default:
      return parseShowTable(message);
  }
}
