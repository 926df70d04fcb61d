/** Results of `x86_emulate_instruction`, beyond the RET_PF_* that fault handling returns. */
export const EMULATION_DONE = 100;
export const EMULATION_INJECTED = 101;
/** What an exit handler returns to the run loop. */
export const EXIT_RESUME = 0;
export const EXIT_EMULATED = 1;
export const EXIT_INJECTED = 2;
