// What the browser tests play on: a vbmd of their own with the page inside, the command `vbm`, and Chromium.
//
//   vitest --> Stage --spawn--> vbmd --ephemeral --web 127.0.0.1:0     in a directory of its own
//                |---- vbm ...                                          the same platform, by its command
//                `---- Chromium (Debian's) with an empty profile
//
// Nothing is left: VMs and networks are deleted, vbmd is ended by its pid, `vbm doctor --fix` has the last look. When
// the tests are killed, the kernel ends vbmd (setpriv --pdeathsig) and Chromium ends with its pipe.

import { type ChildProcess, execFile, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";
import { type Browser, type BrowserContext, type Page, chromium } from "playwright-core";

const run = promisify(execFile);

/** From the start of vbmd to its ready line. */
const READY_WITHIN_MS = 30_000;
/** From SIGTERM to the end of vbmd, with VMs that it ends. */
const STOP_WITHIN_MS = 30_000;
/** The longest that a command may take. */
const COMMAND_WITHIN_MS = 90_000;
const CHROMIUM_WITHIN_MS = 60_000;
const OUTPUT_MAX_BYTES = 8 << 20;
const VIEW = { width: 1360, height: 900 };
/** Chromium speaks to vbmd and to nobody else. */
const CHROMIUM_ARGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** A variable that whoever runs the tests has to set; `cargo xtask web --test` does. */
function given(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: run these tests by \`cargo xtask web --test\``);
  return value;
}

function chromiumPath(): string {
  const found = [process.env["VBM_CHROMIUM"], "/usr/bin/chromium"].find((path) => path && existsSync(path));
  if (!found) throw new Error("there is no chromium: `cargo xtask setup` installs it, or VBM_CHROMIUM names it");
  return found;
}

export class Stage {
  readonly guest = given("VBM_GUEST_DIR");
  readonly shots = given("VBM_WEB_SHOTS");
  readonly #programs = given("VBM_PROGRAMS");
  readonly #dir = mkdtempSync(join(tmpdir(), "vbm-web-"));
  readonly #socket = join(this.#dir, "s");
  #vbmd: ChildProcess | undefined;
  #browser: Browser | undefined;
  /** What Chromium complained of: errors of the page, and of its policy. */
  readonly complaints: string[] = [];
  base = "";

  static async set(): Promise<Stage> {
    const stage = new Stage();
    try {
      mkdirSync(stage.shots, { recursive: true });
      await stage.start();
      stage.#browser = await chromium.launch({
        executablePath: chromiumPath(),
        args: CHROMIUM_ARGS,
        timeout: CHROMIUM_WITHIN_MS,
      });
      return stage;
    } catch (error) {
      await stage.clear();
      throw error;
    }
  }

  /** Starts vbmd; gives the login link that it prints. The port stays the same over restarts. */
  async start(): Promise<string> {
    const web = this.base ? new URL(this.base).host : "127.0.0.1:0";
    const args = ["--data-dir", join(this.#dir, "data"), "--socket", this.#socket, "--ephemeral", "--web", web];
    const vbmd = spawn("setpriv", ["--pdeathsig", "KILL", "--", join(this.#programs, "vbmd"), ...args], {
      stdio: ["ignore", "pipe", "inherit"],
      env: { ...process.env, VBM_LOG: "warn" },
    });
    this.#vbmd = vbmd;
    const link = await within(READY_WITHIN_MS, "vbmd did not come up", loginLink(vbmd));
    this.base = new URL(link).origin;
    return link;
  }

  /** Ends vbmd with a signal and waits for it. */
  async stop(signal: "SIGTERM" | "SIGKILL" = "SIGTERM"): Promise<void> {
    const vbmd = this.#vbmd;
    this.#vbmd = undefined;
    if (!vbmd || vbmd.exitCode !== null || vbmd.signalCode !== null) return;
    const ended = new Promise((resolve) => vbmd.once("exit", resolve));
    vbmd.kill(signal);
    await within(STOP_WITHIN_MS, "vbmd did not end", ended).catch((error: unknown) => {
      vbmd.kill("SIGKILL");
      throw error;
    });
  }

  /** Runs `vbm` with arguments; gives what it printed. */
  async vbm(...args: string[]): Promise<string> {
    const { stdout } = await run(join(this.#programs, "vbm"), args, {
      env: { ...process.env, VBM_SOCKET: this.#socket },
      timeout: COMMAND_WITHIN_MS,
      maxBuffer: OUTPUT_MAX_BYTES,
    });
    return stdout;
  }

  /** Runs a command line as the page shows it, in a real shell. */
  async shell(line: string): Promise<string> {
    const { stdout } = await run("sh", ["-c", line], {
      env: { ...process.env, VBM_SOCKET: this.#socket, PATH: `${this.#programs}:${process.env["PATH"] ?? ""}` },
      timeout: COMMAND_WITHIN_MS,
      maxBuffer: OUTPUT_MAX_BYTES,
    });
    return stdout;
  }

  /** A browser window without a session, as of somebody new. */
  async visitor(dark = false): Promise<{ context: BrowserContext; page: Page }> {
    if (!this.#browser) throw new Error("there is no browser");
    const context = await this.#browser.newContext({
      viewport: VIEW,
      colorScheme: dark ? "dark" : "light",
      baseURL: this.base,
      permissions: ["clipboard-read", "clipboard-write"],
    });
    const page = await context.newPage();
    page.setDefaultTimeout(20_000);
    page.on("pageerror", (error) => this.complaints.push(`error: ${error.message}`));
    page.on("console", (message) => {
      if (message.type() === "error") this.complaints.push(`console: ${message.text()}`);
    });
    return { context, page };
  }

  /** A picture of the page, kept for people to look at. */
  async shot(page: Page, name: string): Promise<void> {
    await page.screenshot({ path: join(this.shots, `${name}.png`), animations: "disabled" });
  }

  /** Removes everything, also after a failure; what could not be removed is told at the end. */
  async clear(): Promise<void> {
    const faults: unknown[] = [];
    const attempt = (work: Promise<unknown>) => work.catch((error: unknown) => faults.push(error));
    if (this.#browser) await attempt(this.#browser.close());
    if (this.#vbmd) {
      for (const vm of await this.#names("list")) await attempt(this.vbm("delete", vm, "--force"));
      for (const network of await this.#names("network", "list")) await attempt(this.vbm("network", "delete", network));
      await attempt(this.stop());
    }
    await attempt(this.vbm("doctor", "--fix").catch(() => undefined));
    rmSync(this.#dir, { recursive: true, force: true });
    if (faults.length > 0) throw new AggregateError(faults, "the stage could not be cleared");
  }

  async #names(...args: string[]): Promise<string[]> {
    const text = await this.vbm(...args, "-o", "name").catch(() => "");
    return text.split("\n").filter(Boolean);
  }
}

/** The login link among the first lines of vbmd. */
function loginLink(vbmd: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    vbmd.once("exit", (code, signal) => reject(new Error(`vbmd ended: ${code ?? signal}`)));
    vbmd.once("error", reject);
    if (!vbmd.stdout) return;
    createInterface(vbmd.stdout).on("line", (text) => {
      const link = /^vbmd web (\S+)$/.exec(text)?.[1];
      if (link) resolve(link);
    });
  });
}

export async function within<T>(milliseconds: number, what: string, work: Promise<T>): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} within ${milliseconds / 1000} s`)), milliseconds);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Looks again and again until it is so. */
export async function until<T>(
  milliseconds: number,
  what: string,
  look: () => Promise<T | undefined | false>,
): Promise<T> {
  const deadline = Date.now() + milliseconds;
  for (;;) {
    const seen = await look();
    if (seen !== undefined && seen !== false) return seen as T;
    if (Date.now() > deadline) throw new Error(`${what}: not within ${milliseconds / 1000} s`);
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
}
