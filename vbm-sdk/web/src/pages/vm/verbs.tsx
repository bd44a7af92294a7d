// Power and deletion of VMs, wherever they are asked for.

import type { IAction } from "@patternfly/react-table";
import { useCallback } from "react";
import { call } from "../../api/http";
import type { Vm } from "../../api/types";
import * as cli from "../../cli/commands";
import { type Deed, useAct, useDo } from "../../components/act";
import { useDialog } from "../../components/Dialogs";
import { FormModal } from "../../components/FormModal";
import { DANGEROUS, VERB_LABEL, type Verb, deleteNeedsForce, refusal } from "../../lib/power";

const ROW_VERBS: Verb[] = ["start", "stop", "pause", "resume", "save", "discard", "restart", "force-off", "delete"];
/** Shown only where they make sense: most machines are never saved. */
const RARE_VERBS: Verb[] = ["discard", "resume"];

const WARNINGS: Partial<Record<Verb, (vm: Vm) => string>> = {
  "force-off": (vm) => `${vm.name} ends at once, without being asked: what its guest has not written is lost.`,
  restart: (vm) => `${vm.name} is reset as by its button: what its guest has not written is lost.`,
  discard: (vm) => `${vm.name} is off afterwards, as after a power cut: the memory that was saved is thrown away.`,
  delete: (vm) =>
    `${vm.name} is deleted with its disk, its ports and its forwards; a floating IP that is kept stays. There is no way back.` +
    (deleteNeedsForce(vm) ? " It is not off, and is ended first without asking its guest." : ""),
};

function deedOf(verb: Verb, vm: Vm): Deed {
  const force = verb === "delete" && deleteNeedsForce(vm);
  const path = { vm: vm.id };
  return {
    title: `${VERB_LABEL[verb]}: ${vm.name}`,
    command: cli.power(verb, vm.name, force),
    run: () =>
      verb === "delete"
        ? call("delete", "/v1/vms/{vm}", { path, query: { force } })
        : call("post", "/v1/vms/{vm}/power", { path, body: { action: verb } }),
  };
}

/** Gives what does a verb: at once, or after a question where something can be lost. */
export function useVerb(): (verb: Verb, vm: Vm) => void {
  const act = useAct();
  const open = useDialog();
  return useCallback(
    (verb, vm) => {
      if (DANGEROUS.includes(verb)) open((close) => <Question verb={verb} vm={vm} close={close} />);
      else void act(deedOf(verb, vm));
    },
    [act, open],
  );
}

function Question({ verb, vm, close }: { verb: Verb; vm: Vm; close: () => void }) {
  const act = useDo();
  const deed = deedOf(verb, vm);
  return (
    <FormModal
      danger
      size="small"
      title={`${VERB_LABEL[verb]} ${vm.name}?`}
      description={WARNINGS[verb]?.(vm)}
      submit={VERB_LABEL[verb]}
      command={deed.command}
      onSubmit={() => act(deed)}
      onClose={close}
    />
  );
}

/** The verbs of a VM as a menu; what makes no sense now says why. */
export function verbItems(vm: Vm, doVerb: (verb: Verb, vm: Vm) => void): IAction[] {
  return ROW_VERBS.flatMap((verb) => {
    const why = refusal(verb, vm);
    if (why !== undefined && RARE_VERBS.includes(verb)) return [];
    const force = verb === "delete" && deleteNeedsForce(vm);
    const item: IAction = {
      title: VERB_LABEL[verb],
      description: why ?? cli.power(verb, vm.name, force),
      isAriaDisabled: why !== undefined,
      isDanger: verb === "delete",
      onClick: () => doVerb(verb, vm),
    };
    return verb === "delete" ? [{ isSeparator: true }, item] : [item];
  });
}
