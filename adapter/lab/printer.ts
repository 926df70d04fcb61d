/** Where a lab's words go. */
export interface LabPrinter {
  /** A step of the boot. */
  progress(words: string): void;
  /** Something that does not work as it should. */
  problem(words: string): void;
  /** What the lab's kernel writes to its console. */
  labConsole(text: string): void;
}
