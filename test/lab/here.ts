import { thisMachine } from '../../adapter/kvm/place.ts';
import { RspClient } from '../../adapter/rsp/client.ts';

/** Why the shadow tables of this machine's KVM cannot be had. */
export async function withoutShadow(): Promise<string | undefined> {
  const client = new RspClient(await thisMachine().start(['--memory', '16M']));
  try {
    await client.handshake();
    const { secondStage, has } = await client.info();
    if (secondStage !== 'shadow') return `this KVM translates by ${secondStage}, not by shadow tables`;
    return has.tables === '' ? undefined : has.tables;
  } finally {
    client.kill();
  }
}
