import { REGISTER_BITS, REGISTERS, RegisterError, type RegisterName } from '../engine/guest/registers.ts';
import { BITS } from './kvm/registers.ts';
import { RequestError } from './request-error.ts';
import type { Target } from './targets/target.ts';
import type { Node } from './variables.ts';

/** Writes a register of a target, or a named bit of one. @returns the register's new value. @throws with a message for people */
export async function setRegister(
  target: Target,
  { vcpu, name, bit }: NonNullable<Node['register']>,
  value: bigint,
): Promise<bigint> {
  const next = bit === undefined ? value : withBit(target, vcpu, name, bit, value !== 0n);
  if (target.guest) await target.guest.setRegister(vcpu, name, next);
  else setEmulated(target, vcpu, name, next);
  return next;
}

/** A register's value with one of its named bits as it is to be. */
function withBit(target: Target, vcpu: number, name: string, bit: string, on: boolean): bigint {
  const value = target.guest
    ? target.guest.scope(vcpu).name([name])
    : target.machine.vcpu(vcpu).registers[name as RegisterName];
  const number = (target.guest ? BITS[name] : REGISTER_BITS[name as RegisterName])?.[bit];
  if (typeof value !== 'bigint' || number === undefined) throw new RequestError(`${name}.${bit} cannot be set`);
  const mask = 1n << BigInt(number);
  return on ? value | mask : value & ~mask;
}

function setEmulated(target: Target, vcpu: number, name: string, value: bigint): void {
  const register = REGISTERS.find((known) => known === name);
  if (!register) throw new RequestError(`there is no register ${name}`);
  try {
    target.edit({ kind: 'register', vcpu, register, value });
  } catch (failure) {
    if (failure instanceof RegisterError) throw new RequestError(failure.message);
    throw failure;
  }
}
