import { Button, Checkbox, ExpandableSection, Grid, GridItem } from "@patternfly/react-core";
import PlusCircleIcon from "@patternfly/react-icons/dist/esm/icons/plus-circle-icon";
import TrashIcon from "@patternfly/react-icons/dist/esm/icons/trash-icon";
import { useState } from "react";
import { call } from "../../api/http";
import type { DriverKind, LaunchRequest, NicRequest } from "../../api/types";
import * as cli from "../../cli/commands";
import { useDo } from "../../components/act";
import { ChoiceField, ManyField, NumberField, TextField } from "../../components/fields";
import { FormModal } from "../../components/FormModal";
import { mib } from "../../lib/format";
import { nameProblem } from "../../lib/names";
import { useLive } from "../../live/context";
import { groupsOf, imagesOf, networksOf, nodesOf } from "../../live/store";

const VCPUS_MAX = 512;
const MEMORY_MIN_MIB = 32;
const MEMORY_MAX_MIB = 8 * 1024 * 1024;
const MEMORY_STEP_MIB = 128;
const DISK_MAX_MIB = 64 * 1024 * 1024;
const DISK_STEP_MIB = 1024;
const NICS_MAX = 8;
const BYTES_PER_MIB = 1024 * 1024;
const DRIVERS: DriverKind[] = ["qemu", "virtual-box", "sim"];

interface LabelRow {
  key: string;
  value: string;
}

/** What the server is asked for, of what the form holds. */
function requestOf(form: cli.Launch): LaunchRequest {
  return {
    image: form.image,
    name: form.name || null,
    vcpus: form.vcpus,
    memory_mib: form.memoryMib,
    disk_mib: form.diskMib,
    nics: form.nics,
    driver: form.driver,
    node: form.node,
    stopped: form.stopped,
    labels: form.labels,
  };
}

export function LaunchForm({ close }: { close: () => void }) {
  const live = useLive();
  const act = useDo();
  const images = imagesOf(live);
  const networks = networksOf(live);
  const nodes = nodesOf(live);
  const [form, setForm] = useState<cli.Launch>({
    image: images[0]?.name ?? "",
    name: "",
    vcpus: 1,
    memoryMib: 256,
    diskMib: null,
    nics: networks[0] ? [{ network: networks[0].name, groups: [] }] : [],
    driver: null,
    node: null,
    stopped: false,
    labels: {},
  });
  const [labels, setLabels] = useState<LabelRow[]>([]);
  const set = (part: Partial<cli.Launch>) => setForm((before) => ({ ...before, ...part }));
  const wanted: cli.Launch = {
    ...form,
    labels: Object.fromEntries(labels.filter((label) => label.key).map((label) => [label.key, label.value])),
  };
  const image = images.find((other) => other.name === form.image);
  const imageMib = image ? Math.ceil(image.spec.virtual_bytes / BYTES_PER_MIB) : 0;
  const usable = new Set(
    nodes.flatMap((node) => node.status.capabilities ?? []).flatMap((can) => (can.problem ? [] : [can.driver])),
  );
  const problem = nameProblem(form.name);
  const command = cli.launch(wanted);

  return (
    <FormModal
      title="Create a virtual machine"
      submit={form.stopped ? "Create" : "Create and start"}
      command={command}
      ready={form.image !== "" && !problem}
      onClose={close}
      onSubmit={() =>
        act({
          title: `Create ${form.name || "a virtual machine"}`,
          command,
          run: () => call("post", "/v1/vms", { body: requestOf(wanted) }),
        })
      }
    >
      <Grid hasGutter md={6}>
        <TextField
          label="Name"
          value={form.name}
          onChange={(name) => set({ name })}
          problem={problem}
          help="Also its host name. Made up when left empty."
        />
        <ChoiceField
          label="Image"
          required
          value={form.image}
          onChange={(name) => set({ image: name, diskMib: null })}
          options={
            images.length > 0
              ? images.map((other) => ({ value: other.name, text: other.name }))
              : [{ value: "", text: "There is no image yet: import one first", disabled: true }]
          }
        />
        <NumberField label="CPUs" value={form.vcpus} onChange={(vcpus) => set({ vcpus })} min={1} max={VCPUS_MAX} />
        <NumberField
          label="Memory"
          unit="MiB"
          value={form.memoryMib}
          onChange={(memoryMib) => set({ memoryMib })}
          min={MEMORY_MIN_MIB}
          max={MEMORY_MAX_MIB}
          step={MEMORY_STEP_MIB}
        />
      </Grid>
      <Nics nics={form.nics} onChange={(nics) => set({ nics })} />
      <ExpandableSection toggleText="More: disk, node, driver, labels">
        <Grid hasGutter md={6}>
          <NumberField
            label="Disk"
            unit="MiB"
            value={form.diskMib ?? imageMib}
            onChange={(size) => set({ diskMib: size === imageMib ? null : size })}
            min={imageMib}
            max={DISK_MAX_MIB}
            step={DISK_STEP_MIB}
            help={`The image has ${mib(imageMib)}.`}
          />
          <ChoiceField
            label="Node"
            value={form.node ?? ""}
            onChange={(node) => set({ node: node || null })}
            options={[
              { value: "", text: "Chosen for me" },
              ...nodes.map((node) => ({
                value: node.path,
                text: `${node.path} (${node.status.state}, ${mib(node.status.memory_free_mib ?? 0)} free)`,
              })),
            ]}
          />
          <ChoiceField
            label="Driver"
            value={form.driver ?? ""}
            onChange={(driver) => set({ driver: DRIVERS.find((other) => other === driver) ?? null })}
            options={[
              { value: "", text: "What the node has" },
              ...DRIVERS.map((driver) => ({
                value: driver,
                text: usable.has(driver) ? driver : `${driver} (no node has it)`,
                disabled: !usable.has(driver),
              })),
            ]}
          />
          <GridItem span={12}>
            <Labels rows={labels} onChange={setLabels} />
          </GridItem>
        </Grid>
      </ExpandableSection>
      <Checkbox
        id="launch-stopped"
        label="Leave it off for now"
        isChecked={form.stopped}
        onChange={(_, stopped) => set({ stopped })}
      />
    </FormModal>
  );
}

function Nics({ nics, onChange }: { nics: NicRequest[]; onChange: (nics: NicRequest[]) => void }) {
  const live = useLive();
  const networks = networksOf(live);
  const groups = groupsOf(live);
  const replace = (at: number, part: Partial<NicRequest>) =>
    onChange(nics.map((nic, index) => (index === at ? { ...nic, ...part } : nic)));
  const [first] = networks;
  return (
    <div role="group" aria-label="Network interfaces" className="vbm-rows">
      {nics.map((nic, at) => (
        <div className="vbm-row" key={at}>
          <ChoiceField
            label="Network"
            value={nic.network}
            onChange={(network) => replace(at, { network })}
            options={networks.map((network) => ({
              value: network.name,
              text: `${network.name} (${network.spec.cidr})`,
            }))}
          />
          <TextField
            label="Address"
            value={nic.address ?? ""}
            placeholder="from the pool"
            onChange={(address) => replace(at, { address: address.trim() || null })}
          />
          <ManyField
            label="Security groups"
            values={nic.groups ?? []}
            onChange={(chosen) => replace(at, { groups: chosen })}
            options={groups.map((group) => group.name)}
            none="None: nothing gets in"
          />
          <Button
            variant="plain"
            icon={<TrashIcon />}
            aria-label={`Remove interface ${at + 1}`}
            onClick={() => onChange(nics.filter((_, index) => index !== at))}
          />
        </div>
      ))}
      <Button
        variant="link"
        isInline
        icon={<PlusCircleIcon />}
        isDisabled={!first || nics.length >= NICS_MAX}
        onClick={() => first && onChange([...nics, { network: first.name, groups: [] }])}
      >
        {first ? "Add a network interface" : "There is no network yet: without one, it has no interface"}
      </Button>
    </div>
  );
}

function Labels({ rows, onChange }: { rows: LabelRow[]; onChange: (rows: LabelRow[]) => void }) {
  const replace = (at: number, part: Partial<LabelRow>) =>
    onChange(rows.map((row, index) => (index === at ? { ...row, ...part } : row)));
  return (
    <div role="group" aria-label="Labels" className="vbm-rows">
      {rows.map((row, at) => (
        <div className="vbm-row" key={at}>
          <TextField label="Label" value={row.key} onChange={(key) => replace(at, { key })} />
          <TextField label="Value" value={row.value} onChange={(value) => replace(at, { value })} />
          <Button
            variant="plain"
            icon={<TrashIcon />}
            aria-label={`Remove label ${at + 1}`}
            onClick={() => onChange(rows.filter((_, index) => index !== at))}
          />
        </div>
      ))}
      <Button
        variant="link"
        isInline
        icon={<PlusCircleIcon />}
        onClick={() => onChange([...rows, { key: "", value: "" }])}
      >
        Add a label
      </Button>
    </div>
  );
}
