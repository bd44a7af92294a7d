// The page in Chromium, against a real vbmd with a real QEMU guest: one story, told in order.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { BrowserContext, Locator, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { sockets } from "./host";
import { type Font, desktop, lines, vgaFont } from "./screen";
import { Stage, until } from "./stage";

/** An emulated guest boots in this, also when the machine has other things to do. */
const BOOT_MS = 90_000;
/** Anything else that a guest or an agent does. */
const SOON_MS = 30_000;
const CIDR = "10.83.0.0/24";
const ADDRESS = "10.83.0.10";
const NASTY = `it's "quoted" <script>alert(1)</script> 虚拟机 $HOME`;

let stage: Stage;
let context: BrowserContext;
let page: Page;
let font: Font;
let link: string;
const alerts: string[] = [];

beforeAll(async () => {
  font = vgaFont();
  stage = await Stage.set();
  ({ context, page } = await stage.visitor());
  page.on("dialog", (dialog) => {
    alerts.push(dialog.message());
    void dialog.dismiss();
  });
});
afterAll(() => stage?.clear());

const go = (path: string) => page.goto(stage.base + path);
const button = (name: string | RegExp) => page.getByRole("button", { name, exact: typeof name === "string" });
const dialog = (): Locator => page.getByRole("dialog");
const row = (name: string): Locator => page.locator(`tr[data-row="${name}"]`);
const command = (within: Locator) => within.getByTestId("cli").last().innerText();
const shows = (place: Locator, text: string | RegExp, milliseconds = SOON_MS) =>
  place.filter({ hasText: text }).first().waitFor({ timeout: milliseconds });

/** Opens the menu of a row, or of the page, and chooses from it. */
async function choose(menu: Locator, item: string) {
  await menu.click();
  await page.getByRole("menuitem", { name: item }).click();
}

/** What stands on the guest's screen, read off the pixels that the browser shows. */
async function screenText(): Promise<string> {
  const picture = await desktop(page);
  return picture ? lines(picture, font).join("\n") : "";
}
const onScreen = (text: string, milliseconds = SOON_MS) =>
  until(milliseconds, `"${text}" on the desktop`, async () => (await screenText()).includes(text)).catch(
    async (error: unknown) => {
      throw new Error(`${String(error)}; it shows:\n${await screenText()}`);
    },
  );

/** What the serial console shows. */
const serialText = () => page.locator(".vbm-serial .xterm-rows").innerText();
const onSerial = (text: string, milliseconds = SOON_MS) =>
  until(milliseconds, `"${text}" on the serial console`, async () =>
    (await serialText()).replaceAll("\u00a0", " ").includes(text),
  );

/** Presses the keys of a US keyboard that type a text, Shift and all. */
async function press(text: string) {
  const shifted: Record<string, string> = {
    $: "Shift+4",
    "(": "Shift+9",
    ")": "Shift+0",
    "*": "Shift+8",
    ">": "Shift+Period",
  };
  for (const char of text)
    await page.keyboard.press(shifted[char] ?? (char === "\n" ? "Enter" : char === " " ? "Space" : char));
}

describe("the door", () => {
  it("shows a stranger what to type", async () => {
    await go("/vms");
    await shows(page.locator("body"), "You are not logged in");
    expect(await command(page.locator("body"))).toBe("vbm web login");
    await stage.shot(page, "01-not-logged-in");
    stage.complaints.length = 0; // The browser notes the 401 that this is about.
  });

  it("opens by a link, once", async () => {
    link = /http\S+/.exec(await stage.vbm("web", "login"))?.[0] ?? "";
    await page.goto(link);
    await shows(page.locator("h1"), "Virtual machines");
    await shows(page.locator("body"), "No virtual machines yet");
    await stage.shot(page, "02-no-machines-yet");

    const second = await stage.visitor();
    const answer = await second.page.goto(link);
    expect(answer?.status()).toBeGreaterThanOrEqual(400);
    expect(await second.page.locator("body").innerText()).toContain("vbm web login");
    await stage.shot(second.page, "03-link-used-twice");
    await second.context.close();
    stage.complaints.length = 0; // The browser notes the refusal that this is about.
  });
});

describe("making things", () => {
  it("imports an image from files of the browser's machine", async () => {
    const manifest = JSON.parse(readFileSync(join(stage.guest, "guest.json"), "utf8")) as Record<string, string>;
    const file = (key: string) => join(stage.guest, manifest[key]!);
    await go("/images");
    await page.getByTestId("import-image").click();
    await dialog().getByLabel("Name").fill("tiny");
    const inputs = dialog().locator('input[type="file"]');
    await inputs.nth(0).setInputFiles(file("disk"));
    await button(/^More: a kernel/).click();
    await inputs.nth(1).setInputFiles(file("kernel"));
    await inputs.nth(2).setInputFiles(file("initrd"));
    await dialog().getByLabel("Kernel's command line").fill(manifest["cmdline"]!);
    expect(await command(dialog())).toContain(
      `vbm image import tiny --disk ${manifest["disk"]} --kernel ${manifest["kernel"]}`,
    );
    await stage.shot(page, "04-import-image");
    await button("Import").click();
    await shows(row("tiny"), "its own kernel");
  });

  it("makes a network and a security group, with their commands", async () => {
    await go("/networks");
    await page.getByTestId("create-network").click();
    await dialog().getByLabel("Name").fill("lan");
    await dialog().getByLabel("Addresses").fill(CIDR);
    expect(await command(dialog())).toBe(`vbm network create lan ${CIDR}`);
    await stage.shot(page, "05-create-network");
    await button("Create").click();
    await shows(row("lan"), CIDR);

    await go("/groups");
    await button("Create security group").click();
    await dialog().getByLabel("Name").fill("web");
    await button("Add a rule").click();
    await dialog().getByLabel("Protocol").last().selectOption("icmp");
    expect(await command(dialog())).toBe("vbm group create web tcp/80 icmp");
    await stage.shot(page, "06-create-group");
    await button("Create").click();
    await shows(row("web"), "tcp/80");
  });

  it("refuses a name that no machine can have, and says why", async () => {
    await go("/vms");
    await page.getByTestId("create-vm").click();
    for (const name of ["<script>", "it's", "虚拟机", "Web"]) {
      await dialog().getByLabel("Name", { exact: true }).fill(name);
      await shows(dialog(), /A name begins with a letter|Only a-z/);
      expect(await button("Create and start").isDisabled()).toBe(true);
    }
    await stage.shot(page, "07-bad-name");
    await page.keyboard.press("Escape");
    await dialog().waitFor({ state: "detached" });
  });

  it("shows what the server refuses as what, why, and what to do", async () => {
    await page.getByTestId("create-vm").click();
    await dialog().getByLabel("Name", { exact: true }).fill("web1");
    await dialog().getByLabel("Address").fill("10.99.0.1");
    await button("Create and start").click();
    const error = dialog().getByTestId("error");
    await shows(error, "Why");
    expect(await error.innerText()).toContain("10.99.0.1");
    expect(await error.innerText()).toContain("What to do");
    await stage.shot(page, "08-refused");
    stage.complaints.length = 0; // The browser notes the 400 that this is about.
  });

  it("makes a machine, whose command a real shell and a real vbm understand", async () => {
    await dialog().getByLabel("Address").fill(ADDRESS);
    await dialog().getByLabel("Security groups").click();
    await page.getByRole("menuitem", { name: "web" }).click();
    await page.keyboard.press("Escape");
    await button(/^More: disk/).click();
    await button("Add a label").click();
    await dialog().getByLabel("Label", { exact: true }).fill("note");
    await dialog().getByLabel("Value", { exact: true }).fill(NASTY);
    const shown = await command(dialog());
    await stage.shot(page, "09-create-machine");
    await dialog().getByRole("button", { name: "Copy the command" }).click();
    expect(await page.evaluate(() => navigator.clipboard.readText())).toBe(shown);

    // The same command makes the same machine, but for its name and address; this one stays off.
    const twin = shown.replace("launch tiny web1", "launch tiny twin --stopped").replace(ADDRESS, "10.83.0.20");
    await stage.shell(twin);
    await button("Create and start").click();
    await dialog().waitFor({ state: "detached" });
    await shows(row("web1"), "running", BOOT_MS);
    const [made, typed] = await Promise.all(
      ["web1", "twin"].map(
        async (name) => JSON.parse(await stage.vbm("info", name, "-o", "json")) as Record<string, unknown>,
      ),
    );
    expect(made!["labels"]).toEqual({ note: NASTY });
    expect(typed!["labels"]).toEqual(made!["labels"]);
    await stage.vbm("delete", "twin");
  });
});

describe("what happens", () => {
  it("is shown without a reload, whoever did it", async () => {
    await page.evaluate(() => ((window as unknown as Record<string, unknown>)["mark"] = 1));
    await shows(page.getByTestId("feed"), "live");
    await row("twin").waitFor({ state: "detached", timeout: SOON_MS });
    await stage.vbm("pause", "web1");
    await shows(row("web1"), "paused");
    await stage.vbm("resume", "web1");
    await shows(row("web1"), "running");
    expect(await page.evaluate(() => (window as unknown as Record<string, unknown>)["mark"])).toBe(1);
    await stage.shot(page, "10-machines");
  });

  it("can be reached by the keyboard alone", async () => {
    await go("/vms");
    await row("web1").waitFor();
    await page.keyboard.press("Tab");
    expect(await page.evaluate(() => document.activeElement?.textContent)).toBe("Skip to content");
    for (let n = 0; n < 30; n += 1) {
      await page.keyboard.press("Tab");
      if ((await page.evaluate(() => document.activeElement?.textContent)) === "Create virtual machine") break;
    }
    await page.keyboard.press("Enter");
    await dialog().waitFor();
    await page.keyboard.press("Escape");
    await dialog().waitFor({ state: "detached" });
  });
});

describe("the desktop", () => {
  it("shows the guest's own words in its pixels", async () => {
    await go("/vms/web1/desktop");
    await onScreen(`vbm-guest ready hostname=web1 ip=${ADDRESS}`, BOOT_MS);
    await stage.shot(page, "11-desktop");
  });

  it("takes what is typed on a keyboard, and what the page types", async () => {
    await page.locator(".vbm-desktop canvas").click();
    await press("\necho $((6*7))\n");
    await onScreen("\n42");
    await button("Type text").click();
    await page.getByLabel("Text", { exact: true }).fill('echo "A_b~|C" | tr A-C x-z\n');
    await button("Type it").click();
    await onScreen("\nx_b~|z");
    await stage.shot(page, "12-desktop-typed");
  });

  it("lets go of the guest when the browser goes away", async () => {
    const before = await sockets(stage, "web1");
    const second = await stage.visitor();
    await second.page.goto(/http\S+/.exec(await stage.vbm("web", "login"))![0]);
    await second.page.goto(`${stage.base}/vms/web1/desktop`);
    await shows(second.page.getByTestId("console-state"), "connected");
    await until(SOON_MS, "a second viewer", async () => (await sockets(stage, "web1")) > before);
    await second.context.close();
    await until(SOON_MS, "the second viewer to be gone", async () => (await sockets(stage, "web1")) === before);
    expect(await page.getByTestId("console-state").innerText()).toContain("connected");
  });
});

describe("the serial console", () => {
  it("begins with what was said, and answers what is typed", async () => {
    await go("/vms/web1/serial");
    await onSerial(`vbm-guest ready hostname=web1 ip=${ADDRESS}`);
    await page.locator(".vbm-serial").click();
    await page.keyboard.type("\recho sum=$((20+3)) host=$(hostname)\r");
    await onSerial("sum=23 host=web1");
    await stage.shot(page, "13-serial");
  });

  it("connects anew on request, without typing anything by itself", async () => {
    await button("Reconnect").click();
    await onSerial("sum=23 host=web1");
    await page.keyboard.type("echo again=$((1+1))\r");
    await onSerial("again=2");
    const last = (await serialText()).replaceAll("\u00a0", " ").trimEnd().split("\n").filter(Boolean);
    expect(last.join("\n")).not.toMatch(/\[\d+;\d+R/);
  });
});

describe("snapshots", () => {
  it("are taken of a machine that runs, and lead back to that moment", async () => {
    await page.keyboard.type("echo first >/tmp/word\r");
    await go("/vms/web1/snapshots");
    await page.getByTestId("take-snapshot").click();
    await dialog().getByLabel("Name").fill("before");
    expect(await command(dialog())).toBe("vbm snapshot create web1 before");
    await stage.shot(page, "14-take-snapshot");
    await button("Take it").click();
    await shows(row("before"), "ready", BOOT_MS);
    await shows(row("before"), "disk and memory");

    await stage.shell(
      `printf 'echo second >/tmp/word; cat /tmp/word\\n' | vbm console web1 --until second --timeout 30`,
    );
    await choose(row("before").getByRole("button", { name: "Kebab toggle" }), "Revert to it");
    await stage.shot(page, "15-revert");
    await button("Revert").click();
    await dialog().waitFor({ state: "detached" });
    await shows(page.getByTestId("power"), "running", BOOT_MS);
    await until(BOOT_MS, "the end of the revert", async () => {
      const text = await stage.vbm("operation", "list", "-o", "json");
      const all = JSON.parse(text) as { verb: string; state: string }[];
      return all.some((operation) => operation.verb === "revert" && operation.state === "done");
    });
    await go("/vms/web1/serial");
    await shows(page.getByTestId("console-state"), "connected", BOOT_MS);
    await page.locator(".vbm-serial").click();
    await page.keyboard.type("\recho word=$(cat /tmp/word)\r");
    await onSerial("word=first");
    await go("/vms/web1/snapshots");
    await shows(row("before"), "the machine stands on this");
  });

  it("are taken of a machine that is off, and shown as a tree", async () => {
    await button("Shut down").click();
    await shows(page.getByTestId("power"), "off", BOOT_MS);
    await page.getByTestId("take-snapshot").click();
    await dialog().getByLabel("Name").fill("after");
    await button("Take it").click();
    await shows(row("after"), "ready", BOOT_MS);
    await shows(row("after"), "└");
    await stage.shot(page, "16-snapshots");
  });

  it("are deleted", async () => {
    await choose(row("before").getByRole("button", { name: "Kebab toggle" }), "Delete");
    await button("Delete").click();
    await row("before").waitFor({ state: "detached", timeout: BOOT_MS });
    await shows(row("after"), "ready");
  });
});

describe("trouble", () => {
  it("a machine that is off has no console, and can be started from there", async () => {
    await go("/vms/web1/serial");
    await shows(page.locator("body"), "web1 is off");
    await stage.shot(page, "17-no-console");
    await page.locator("main").getByRole("button", { name: "Start" }).last().click();
    await shows(page.getByTestId("console-state"), "connected", BOOT_MS);
  });

  it("vbmd is killed: the page says so; it is back: the machine still runs", async () => {
    await stage.stop("SIGKILL");
    await shows(page.getByTestId("delayed"), "vbmd does not answer");
    await shows(page.getByTestId("console-closed"), "The connection broke");
    await stage.shot(page, "18-vbmd-killed");
    const again = await stage.start();
    await shows(page.locator("body"), "You are not logged in");
    await page.goto(again);
    await shows(row("web1"), "running");
    stage.complaints.length = 0; // The browser notes each request that failed meanwhile.
  });
});

describe("a port", () => {
  const nic = () => page.getByRole("grid", { name: "Network interfaces" }).getByRole("button", { name: "Kebab toggle" });

  it("gets a floating IP that is kept, and the page and the command line tell the same", async () => {
    await go("/floating-ips");
    await button("Keep a floating IP").click();
    await dialog().getByLabel("Name").fill("shop");
    await dialog().getByLabel("Address").fill("192.0.2.50");
    expect(await command(dialog())).toBe("vbm floating-ip create 192.0.2.50 --name shop");
    await stage.shot(page, "17-keep-floating");
    await button("Keep").click();
    await shows(row("shop"), "free");
    await choose(row("shop").getByRole("button", { name: "Kebab toggle" }), "Attach to a machine");
    expect(await command(dialog())).toBe("vbm floating-ip attach shop web1");
    await stage.shot(page, "17-attach-floating");
    await button("Attach").click();
    await shows(row("shop"), "web1");
    expect(await stage.vbm("floating-ip", "list")).toMatch(/shop +192\.0\.2\.50 +attached +10\.83\.0\.10 +web1 +lan/);
    await stage.shot(page, "17-floating");
    // Back by the command line; the page sees it.
    await stage.vbm("floating-ip", "detach", "web1");
    await shows(row("shop"), "free");
    await button("Pool").click();
    await dialog().getByLabel("Ranges").fill("192.0.2.64-192.0.2.71");
    expect(await command(dialog())).toBe("vbm floating-ip pool 192.0.2.64-192.0.2.71");
    await button("Save").click();
    await dialog().waitFor({ state: "detached" });
    expect((await stage.vbm("floating-ip", "create")).trim()).toMatch(/192\.0\.2\.64 is kept/);
    await shows(page.locator("main"), "192.0.2.64");
  });

  it("gets limits and allowed addresses while its machine runs", async () => {
    await go("/vms/web1");
    await choose(nic(), "Limit what it carries");
    await dialog().getByLabel("Reaches the machine").fill("100mbit");
    await dialog().getByLabel("Sent by").fill("fast");
    await shows(dialog(), "write for example");
    await dialog().getByLabel("Sent by").fill("20mbit");
    expect(await command(dialog())).toBe(
      "vbm port limit web1 --in 100mbit --out 20mbit --connections none --network lan",
    );
    await stage.shot(page, "18-limits");
    await button("Save").click();
    await shows(page.locator("main"), "in 100mbit, out 20mbit");
    await choose(nic(), "Allowed addresses");
    await dialog().getByLabel("Addresses").fill("10.83.0.200 172.16.0.0/16");
    expect(await command(dialog())).toBe("vbm port allow web1 10.83.0.200 172.16.0.0/16 --network lan");
    await stage.shot(page, "18-allowed");
    await button("Save").click();
    await dialog().waitFor({ state: "detached" });
    // As the page shows it when nothing is left to do: both say the same of the port.
    await choose(nic(), "Allowed addresses");
    expect(await dialog().getByLabel("Addresses").inputValue()).toBe("10.83.0.200 172.16.0.0/16");
    expect(await stage.vbm("port", "deny", "web1", "172.16.0.0/16")).toContain("10.83.0.200");
    await page.keyboard.press("Escape");
    await choose(nic(), "Attach a floating IP");
    await stage.shot(page, "18-floating");
    await button("Attach").click();
    await shows(page.getByRole("grid", { name: "Network interfaces" }), /192\.0\.2\.(50|64)/);
    await stage.shot(page, "18-machine");
  });

  it("has groups whose rules keep their peers and ways when they are changed here", async () => {
    const rules = ["tcp/5432@group:web", "any@self", "icmp/type=8", "egress:udp/53@10.0.0.0/8"];
    await stage.vbm("group", "create", "db", ...rules);
    await go("/groups");
    await shows(row("db"), "tcp/5432@group:web");
    await choose(row("db").getByRole("button", { name: "Kebab toggle" }), "Change the rules");
    expect(await command(dialog())).toBe("# nothing to change");
    await button("Add a rule").click();
    await dialog().getByLabel("Way", { exact: true }).last().selectOption("egress");
    await dialog().getByLabel("Protocol").last().selectOption("tcp");
    await dialog().getByLabel("Ports").last().fill("443");
    expect(await command(dialog())).toBe("vbm group allow db egress:tcp/443");
    await stage.shot(page, "19-rules");
    await button("Save").click();
    await dialog().waitFor({ state: "detached" });
    const kept = await stage.vbm("group", "info", "db");
    for (const rule of [...rules, "egress:tcp/443"]) expect(kept).toContain(rule);
    await stage.vbm("group", "delete", "db");
  });
});

describe("every place", () => {
  const PLACES: [path: string, name: string, sign: string][] = [
    ["/vms", "machines", "web1"],
    ["/vms/web1", "machine", "Network interfaces"],
    ["/vms/web1/desktop", "desktop", "connected"],
    ["/vms/web1/serial", "serial", "connected"],
    ["/vms/web1/snapshots", "snapshots", "after"],
    ["/vms/web1/events", "machine-events", "VM created"],
    ["/networks", "networks", CIDR],
    ["/networks/lan", "network", "Ports and leases"],
    ["/groups", "groups", "tcp/80"],
    ["/floating-ips", "floating-ips", "192.0.2.50"],
    ["/images", "images", "tiny"],
    ["/nodes", "nodes", "usable"],
    ["/operations", "operations", "launch"],
    ["/events", "events", "Network ready"],
    [`/vms/${encodeURIComponent(NASTY)}`, "nowhere", "There is no virtual machine"],
  ];

  it.each(["light", "dark"] as const)("is fit to be seen in %s", async (theme) => {
    await page.emulateMedia({ colorScheme: theme });
    for (const [path, name, sign] of PLACES) {
      await go(path);
      await shows(page.locator("main"), sign);
      if (name === "machine") await page.locator(".vbm-screen img").waitFor();
      if (name === "desktop") await until(SOON_MS, "pixels", async () => (await screenText()).includes("BusyBox"));
      if (name === "serial") await onSerial("BusyBox");
      await stage.shot(page, `20-${theme}-${name}`);
    }
  });

  it("ran no script that somebody else wrote, and complains of nothing", () => {
    expect(alerts).toEqual([]);
    expect(stage.complaints).toEqual([]);
  });
});

describe("the end", () => {
  it("deletes a machine after a question that says what is lost", async () => {
    await page.emulateMedia({ colorScheme: "light" });
    await go("/vms/web1");
    await choose(button("Actions"), "Delete");
    await shows(dialog(), "There is no way back");
    expect(await command(dialog())).toBe("vbm delete web1 --force");
    await stage.shot(page, "30-delete");
    await dialog().getByRole("button", { name: "Delete" }).click();
    await shows(page.locator("main"), "There is no virtual machine web1", BOOT_MS);
    expect((await stage.vbm("list", "-o", "name")).trim()).toBe("");
  });

  it("logs out", async () => {
    await button("root").click();
    await page.getByRole("menuitem", { name: "Log out" }).click();
    await shows(page.locator("body"), "You are not logged in");
    await context.close();
  });
});
