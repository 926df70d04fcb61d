import { readFileSync } from 'node:fs';
import type { Program } from '../../engine/program.ts';
import { built } from '../kvm/built.ts';
import { LocalRam } from '../kvm/local-ram.ts';
import { GuestMemory } from '../kvm/memory.ts';
import type { HelperPlace } from '../kvm/place.ts';
import { RspClient } from '../rsp/client.ts';
import { ScenarioRun } from './run.ts';
import { helperArguments, planStubs } from './stubs.ts';

/** A scenario that stands at its beginning on a machine of its own. */
export interface OpenedScenario {
  readonly run: ScenarioRun;
  /** Ends the machine. */
  close(): void;
}

/** Makes a machine for a scenario, and takes the place over with it. @throws with a message for people */
export async function openScenario(
  program: Program,
  print: (text: string) => void,
  place: HelperPlace,
): Promise<OpenedScenario> {
  const vcpus = program.tasks.filter(({ kind }) => kind === 'vcpu').length;
  const stubs = planStubs(program, vcpus);
  const code = new Uint8Array(readFileSync(built('scenario.bin')));
  const client = new RspClient(await place.start(helperArguments(program, stubs, vcpus)));
  let local: LocalRam | undefined;
  const close = (): void => {
    local?.close();
    local = undefined;
    client.kill();
    place.close();
  };
  try {
    const first = await client.handshake();
    const info = await client.info();
    local = LocalRam.open(info);
    const memory = new GuestMemory({
      readNow: (offset, length) => local?.read(offset, length),
      fetch: (gpa, length) => client.readPhysical(gpa, length),
    });
    memory.renew(info.memory.slots, new Map());
    return { run: await ScenarioRun.begin({ client, info, first, memory, program, stubs, code, print }), close };
  } catch (error) {
    close();
    throw error;
  }
}
