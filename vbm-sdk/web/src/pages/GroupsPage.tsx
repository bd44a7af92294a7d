import { Button, Flex, Label, LabelGroup, PageSection } from "@patternfly/react-core";
import PlusCircleIcon from "@patternfly/react-icons/dist/esm/icons/plus-circle-icon";
import ShieldIcon from "@patternfly/react-icons/dist/esm/icons/shield-alt-icon";
import TrashIcon from "@patternfly/react-icons/dist/esm/icons/trash-icon";
import { useState } from "react";
import { call } from "../api/http";
import type { Group } from "../api/types";
import * as cli from "../cli/commands";
import { useDo } from "../components/act";
import { CliBox } from "../components/CliBox";
import { type Column, DataTable } from "../components/DataTable";
import { useDialog } from "../components/Dialogs";
import { Empty } from "../components/Empty";
import { ChoiceField, TextField } from "../components/fields";
import { FormModal } from "../components/FormModal";
import { PageHeader } from "../components/PageHeader";
import { nameProblem } from "../lib/names";
import { PROTOCOLS, type RuleDraft, draftOf, hasMessages, hasPorts, ruleOf, ruleText, sameRule } from "../lib/rules";
import { useLive } from "../live/context";
import { groupsOf, portsOf } from "../live/store";

export function GroupsPage() {
  const live = useLive();
  const open = useDialog();
  const groups = groupsOf(live);
  const members = (group: Group) =>
    portsOf(live)
      .filter((port) => port.spec.groups?.includes(group.id))
      .map((port) => port.vm_name);
  const create = <Button onClick={() => open((close) => <GroupForm close={close} />)}>Create security group</Button>;
  const columns: Column<Group>[] = [
    { title: "Name", by: (group) => group.name, cell: (group) => group.name },
    { title: "Lets in, lets out", cell: (group) => <Rules group={group} /> },
    {
      title: "Machines",
      by: (group) => members(group).length,
      cell: (group) => members(group).join(", ") || <span className="vbm-faint">none</span>,
    },
  ];
  return (
    <>
      <PageHeader
        title="Security groups"
        about="What may reach a virtual machine: all that a group of its port lets in, and nothing else. The way out is open until a rule speaks of it."
        actions={groups.length > 0 && create}
      />
      <PageSection isFilled>
        <DataTable
          label="Security groups"
          rows={groups}
          columns={columns}
          rowKey={(group) => group.name}
          text={(group) => `${group.name} ${group.spec.rules.map((rule) => ruleText(rule, groups)).join(" ")}`}
          actions={(group) => [
            {
              title: "Change the rules",
              description: "also for machines that run",
              onClick: () => open((close) => <GroupForm group={group} close={close} />),
            },
            {
              title: "Delete",
              description: cli.groupDelete(group.name),
              isDanger: true,
              onClick: () => open((close) => <DeleteGroup group={group} close={close} />),
            },
          ]}
          empty={
            <Empty
              title="No security groups yet"
              icon={ShieldIcon}
              action={create}
              command="vbm group create web tcp/80 icmp"
            >
              Without a group nothing reaches a virtual machine. A group lets in what its rules name.
            </Empty>
          }
        />
        {groups.length > 0 && <CliBox command={cli.groups()} />}
      </PageSection>
    </>
  );
}

function Rules({ group }: { group: Group }) {
  const groups = groupsOf(useLive());
  const closed = group.spec.egress_closed && !group.spec.rules.some((rule) => rule.direction === "egress");
  if (group.spec.rules.length === 0 && !closed) return <span className="vbm-faint">nothing in</span>;
  return (
    <LabelGroup numLabels={8}>
      {group.spec.rules.map((rule) => (
        <Label
          key={ruleText(rule)}
          isCompact
          variant="outline"
          color={rule.direction === "egress" ? "purple" : "teal"}
        >
          {ruleText(rule, groups)}
        </Label>
      ))}
      {closed && (
        <Label key="closed" isCompact variant="outline" color="orange">
          nothing out
        </Label>
      )}
    </LabelGroup>
  );
}

/** A group by its name, with what it lets in. */
export function GroupRules({ group }: { group: Group }) {
  return (
    <Flex columnGap={{ default: "columnGapMd" }} className="vbm-group">
      <strong>{group.name}</strong>
      <Rules group={group} />
    </Flex>
  );
}

function DeleteGroup({ group, close }: { group: Group; close: () => void }) {
  const act = useDo();
  const command = cli.groupDelete(group.name);
  return (
    <FormModal
      danger
      size="small"
      title={`Delete security group ${group.name}?`}
      description="A group can be deleted when no port is in it."
      submit="Delete"
      command={command}
      onClose={close}
      onSubmit={() =>
        act({
          title: `Delete security group ${group.name}`,
          command,
          run: () => call("delete", "/v1/groups/{group}", { path: { group: group.id } }),
        })
      }
    />
  );
}

const EMPTY_RULE: RuleDraft = { direction: "ingress", protocol: "tcp", ports: "", from: "" };

/** Makes a group, or changes the rules of one. */
function GroupForm({ group, close }: { group?: Group; close: () => void }) {
  const act = useDo();
  const groups = groupsOf(useLive());
  const [name, setName] = useState(group?.name ?? "");
  const [closed, setClosed] = useState(false);
  const [drafts, setDrafts] = useState<RuleDraft[]>(
    group
      ? group.spec.rules.map((rule) => draftOf(rule, groups))
      : [{ ...EMPTY_RULE, ports: "80" }],
  );
  const rules = drafts.map(ruleOf);
  const problem = group ? undefined : nameProblem(name);
  const replace = (at: number, part: Partial<RuleDraft>) =>
    setDrafts(drafts.map((draft, index) => (index === at ? { ...draft, ...part } : draft)));
  const command = group ? changes(group, rules, groups) : cli.groupCreate(name, rules, closed, groups);
  const title = group ? `Change security group ${group.name}` : "Create a security group";
  return (
    <FormModal
      title={title}
      submit={group ? "Save" : "Create"}
      command={command}
      ready={name !== "" && !problem}
      onClose={close}
      onSubmit={() =>
        act({
          title: group ? title : `Create security group ${name}`,
          command,
          run: () =>
            group
              ? call("put", "/v1/groups/{group}/rules", {
                  path: { group: group.id },
                  body: { rules, generation: group.generation ?? null },
                })
              : call("post", "/v1/groups", { body: { name, rules, egress_closed: closed } }),
        })
      }
    >
      {!group && (
        <TextField label="Name" required value={name} onChange={setName} problem={problem} placeholder="web" />
      )}
      {!group && (
        <ChoiceField
          label="The way out"
          value={closed ? "closed" : "open"}
          onChange={(value) => setClosed(value === "closed")}
          options={[
            { value: "open", text: "open, until a rule speaks of it" },
            { value: "closed", text: "closed, but for what rules let out" },
          ]}
        />
      )}
      <div role="group" aria-label="Rules" className="vbm-rows">
        {drafts.map((draft, at) => (
          <div className="vbm-row vbm-rule" key={at}>
            <ChoiceField
              label="Way"
              value={draft.direction}
              onChange={(value) => replace(at, { direction: value === "egress" ? "egress" : "ingress" })}
              options={[
                { value: "ingress", text: "in" },
                { value: "egress", text: "out" },
              ]}
            />
            <ChoiceField
              label="Protocol"
              value={draft.protocol}
              onChange={(value) => replace(at, { protocol: PROTOCOLS.find((other) => other === value) ?? "tcp" })}
              options={PROTOCOLS.map((protocol) => ({ value: protocol, text: protocol }))}
            />
            <TextField
              label={hasMessages(draft.protocol) ? "Messages" : "Ports"}
              value={hasPorts(draft.protocol) || hasMessages(draft.protocol) ? draft.ports : ""}
              onChange={(ports) => replace(at, { ports })}
              placeholder={
                hasPorts(draft.protocol)
                  ? "all, 80, or 8000-8080"
                  : hasMessages(draft.protocol)
                    ? "all, or type=8"
                    : "none"
              }
            />
            <TextField
              label={draft.direction === "egress" ? "To" : "From"}
              value={draft.from}
              onChange={(from) => replace(at, { from })}
              placeholder="anywhere, 10.0.0.0/8, self, group:web"
            />
            <Button
              variant="plain"
              icon={<TrashIcon />}
              aria-label={`Remove rule ${at + 1}`}
              onClick={() => setDrafts(drafts.filter((_, index) => index !== at))}
            />
          </div>
        ))}
        <Button variant="link" isInline icon={<PlusCircleIcon />} onClick={() => setDrafts([...drafts, EMPTY_RULE])}>
          Add a rule
        </Button>
      </div>
    </FormModal>
  );
}

/** The commands that bring a group from its rules to others. */
function changes(group: Group, rules: ReturnType<typeof ruleOf>[], groups: Group[]): string {
  const before = group.spec.rules;
  const added = rules.filter((rule) => !before.some((other) => sameRule(rule, other, groups)));
  const gone = before.filter((rule) => !rules.some((other) => sameRule(rule, other, groups)));
  const lines = [
    ...(added.length > 0 ? [cli.groupAllow(group.name, added, groups)] : []),
    ...(gone.length > 0 ? [cli.groupDeny(group.name, gone, groups)] : []),
  ];
  return lines.join("\n") || "# nothing to change";
}
