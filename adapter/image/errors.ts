/** An image that cannot be used; the message names the file. */
export class ImageError extends Error {}
