// Files from the browser to vbmd, with their progress.

import { ApiError, failure } from "./http";
import type { Blob as StoredBlob } from "./types";

/** The first bytes of a qcow2 file (docs/interop/qcow2.txt of QEMU). */
const QCOW2_MAGIC = [0x51, 0x46, 0x49, 0xfb];

/** The format of a disk, by its first bytes: what is not qcow2 is taken as it is. */
export async function diskFormat(file: Blob): Promise<"qcow2" | "raw"> {
  const head = new Uint8Array(await file.slice(0, QCOW2_MAGIC.length).arrayBuffer());
  return QCOW2_MAGIC.every((byte, at) => head[at] === byte) ? "qcow2" : "raw";
}

/** Sends a file. fetch tells no progress of what is sent; XMLHttpRequest does. Aborting cuts the upload off. */
export function upload(file: File, onSent: (bytes: number) => void, signal: AbortSignal): Promise<StoredBlob> {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const broken = (why: string) =>
      reject(new ApiError(`cannot upload ${file.name}`, why, "See whether vbmd runs, then try again.", 0));
    request.upload.onprogress = (event) => onSent(event.loaded);
    request.onerror = () => broken("the connection broke, or the file cannot be read");
    request.onabort = () => broken("it was cancelled");
    request.onload = () => {
      if (request.status >= 200 && request.status < 300) {
        resolve(JSON.parse(request.responseText) as StoredBlob);
        return;
      }
      const { status, statusText, responseText } = request;
      void failure(new Response(responseText, { status, statusText })).then(reject);
    };
    signal.addEventListener("abort", () => request.abort());
    request.open("POST", "/v1/blobs");
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.send(file);
  });
}
