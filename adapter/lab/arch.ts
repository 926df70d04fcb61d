/** What a lab needs to know of an architecture. */
export interface LabArchitecture {
  readonly name: string;
  readonly qemu: string;
  /** Debian's package of it. */
  readonly qemuPackage: string;
  /** Machine and processor, one that has what KVM wants, by software emulation. */
  readonly machine: readonly string[];
  /** The kernel's name of the first serial line. */
  readonly console: string;
  /** Where a build of the kernel leaves its image. */
  readonly imageOfTree: string;
  /** What such an image is called. */
  readonly imageName: string;
  /** The release that a kernel image says it is; undefined where it is no kernel of this architecture. */
  releaseOf(image: Uint8Array): string | undefined;
  /** Modules that make KVM: the last one takes the others along. */
  readonly kvm: string;
  /** Modules that carry the line to the host faster than the serial port. */
  readonly line: readonly string[];
}

/** "HdrS", which the boot protocol puts there (Documentation/arch/x86/boot.rst). */
const X86_MAGIC = 0x53726448;
const X86_MAGIC_AT = 0x202;
/** 16 bits: where the text of the version is, less 0x200. */
const X86_VERSION_AT = 0x20e;

export const X86_64: LabArchitecture = {
  name: 'x86-64',
  qemu: 'qemu-system-x86_64',
  qemuPackage: 'qemu-system-x86',
  // IA32_ARCH_CAPABILITIES of the `max` model makes older kernels warn about an MSR that TCG lacks.
  machine: ['-M', 'pc', '-cpu', 'max,-arch-capabilities,+svm,+npt'],
  console: 'ttyS0',
  imageOfTree: 'arch/x86/boot/bzImage',
  imageName: 'bzImage',
  releaseOf(image) {
    if (image.length < X86_VERSION_AT + 2) return undefined;
    const view = new DataView(image.buffer, image.byteOffset, image.length);
    if (view.getUint32(X86_MAGIC_AT, true) !== X86_MAGIC) return undefined;
    const at = view.getUint16(X86_VERSION_AT, true) + 0x200;
    const version = new TextDecoder('latin1').decode(image.subarray(at, at + 256));
    return /^[\w.+~-]+/.exec(version)?.[0];
  },
  kvm: 'kvm-amd',
  line: ['virtio_pci', 'virtio_console'],
};

/** The architecture of the helper that is built here, and so of the labs that it can run in. */
export function labArchitecture(): LabArchitecture {
  if (process.arch !== 'x64')
    throw new Error(`labs are there for helpers of x86-64 so far, and this is ${process.arch}`);
  return X86_64;
}
