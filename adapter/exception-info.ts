import type { DebugProtocol } from '@vscode/debugprotocol';
import type { Machine } from '../engine/machine.ts';
import type { StopAnswer } from '../engine/queries/answers.ts';

/** A stop as its exception's details, of a fault or of whatever else it is for. `machine` is asked only about faults. */
export function exceptionInfo(
  { fault, reason, sentence }: StopAnswer,
  machine: () => Machine,
): NonNullable<DebugProtocol.ExceptionInfoResponse['body']> {
  return {
    exceptionId: fault
      ? {
          guest: 'Guest #PF',
          violation: secondStageFault(machine()),
          misconfiguration: reservedBits(machine()),
          mmio: 'MMIO',
          nested: 'Nested VM exit',
          rmp: 'RMP fault',
        }[fault.kind]
      : reason,
    description: sentence,
    breakMode: 'always',
    details: {
      message: sentence,
      ...(fault
        ? {
            typeName: fault.kind,
            evaluateName: fault.gpa === undefined ? `gva:${fault.gva}` : `gpa:${fault.gpa}`,
            stackTrace: `error code ${fault.errorWords}`,
          }
        : {}),
    },
  };
}

function reservedBits({ mirror, config }: Machine): string {
  return !mirror && config.second === 'ept' ? 'EPT misconfiguration' : 'Reserved bits';
}

function secondStageFault({ mirror, config }: Machine): string {
  if (mirror) return 'Second-stage fault';
  return { ept: 'EPT violation', npt: 'NPT fault', shadow: 'Fault on shadow tables' }[config.second];
}
