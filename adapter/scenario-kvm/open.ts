import { readFileSync } from 'node:fs';
import type { Program } from '../../engine/program.ts';
import { built as builtFile } from '../kvm/built.ts';
import { KvmBuilt } from '../kvm/kvm-built.ts';
import { LocalRam } from '../kvm/local-ram.ts';
import { GuestMemory } from '../kvm/memory.ts';
import type { HelperPlace } from '../kvm/place.ts';
import type { WantedOfKvm } from '../kvm/wanted.ts';
import { RspClient } from '../rsp/client.ts';
import type { KvmInfo } from '../rsp/info.ts';
import { ScenarioRun } from './run.ts';
import { helperArguments, planStubs } from './stubs.ts';

/** A scenario that stands at its beginning on a machine of its own. */
export interface OpenedScenario {
  readonly built: KvmBuilt;
  readonly client: RspClient;
  readonly info: KvmInfo;
  readonly run: ScenarioRun;
  /** Ends the machine. */
  close(): Promise<void>;
}

/** Makes a machine for a scenario, and takes the place over with it. @throws with a message for people */
export async function openScenario(
  program: Program,
  print: (text: string) => void,
  place: HelperPlace,
  wanted: WantedOfKvm = {},
): Promise<OpenedScenario> {
  const vcpus = program.tasks.filter(({ kind }) => kind === 'vcpu').length;
  let client: RspClient | undefined;
  let local: LocalRam | undefined;
  let built: KvmBuilt | undefined;
  const close = async (): Promise<void> => {
    local?.close();
    local = undefined;
    await built?.close();
    client?.kill();
    place.close();
  };
  try {
    const stubs = planStubs(program, vcpus);
    const codes = new Map(
      [...stubs.values()].map(({ code }) => [code, new Uint8Array(readFileSync(builtFile(code)))] as const),
    );
    const helper = new RspClient(await place.start(helperArguments(program, stubs.values(), vcpus)));
    client = helper;
    const first = await helper.handshake();
    const info = await helper.info();
    const { svm = 'this helper does not say whether KVM offers its guests SVM' } = info.has;
    if (svm !== '' && [...stubs.values()].some(({ nested }) => nested))
      throw new Error(`this scenario has nested guests: ${svm}`);
    local = LocalRam.open(info);
    const memory = new GuestMemory({
      readNow: (offset, length) => local?.read(offset, length),
      fetch: (gpa, length) => helper.readPhysical(gpa, length),
    });
    memory.renew(info.memory, new Map());
    built = await KvmBuilt.open(helper, info, print, wanted);
    const run = await ScenarioRun.begin({ client: helper, info, first, memory, built, program, stubs, codes, print });
    return { client: helper, info, built, run, close };
  } catch (error) {
    await close();
    throw error;
  }
}
