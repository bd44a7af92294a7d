import {
  Alert,
  Card,
  CardBody,
  CardHeader,
  CardTitle,
  Flex,
  Grid,
  GridItem,
  Label,
  PageSection,
  Progress,
  ProgressMeasureLocation,
  ProgressVariant,
} from "@patternfly/react-core";
import ServerIcon from "@patternfly/react-icons/dist/esm/icons/server-icon";
import type { Node } from "../api/types";
import * as cli from "../cli/commands";
import { CliBox } from "../components/CliBox";
import { Empty } from "../components/Empty";
import { ErrorBody, sentence } from "../components/ErrorNote";
import { Facts } from "../components/Facts";
import { PageHeader } from "../components/PageHeader";
import { NodeLabel, ToneLabel } from "../components/StateLabel";
import { Ago } from "../components/time";
import { mib } from "../lib/format";
import { useLive } from "../live/context";
import { nodesOf, vmsOf } from "../live/store";
import { Link } from "../navigation";

/** Memory in use above this is shown in another colour. */
const MEMORY_WARN_PERCENT = 90;

export function NodesPage() {
  const nodes = nodesOf(useLive());
  return (
    <>
      <PageHeader title="Nodes" about="The machines that run virtual machines." />
      <PageSection isFilled>
        {nodes.length === 0 && (
          <Empty title="No nodes yet" icon={ServerIcon} command="vbmd agent --redis URL">
            A node is a machine where an agent runs. <code>vbmd</code> alone has one inside; others join over Redis.
          </Empty>
        )}
        <Grid hasGutter>
          {nodes.map((node) => (
            <GridItem key={node.path} lg={6}>
              <NodeCard node={node} />
            </GridItem>
          ))}
        </Grid>
        {nodes.length > 0 && <CliBox command={cli.nodes()} />}
      </PageSection>
    </>
  );
}

const FACETS: Record<string, string> = {
  consoles: "consoles",
  snapshots: "snapshots",
  "saved-state": "saved memory",
  migration: "live migration",
  hotplug: "hot-plug",
};

/** Why a node is in its state, in a sentence. */
function reason(node: Node): string {
  switch (node.status.state) {
    case "ready":
      return node.spec.cordoned ? "It answers, and takes no new machines: it is cordoned." : "It answers.";
    case "lost":
      return "It does not answer any more. What runs on it may run on: nothing of it is started elsewhere.";
    case "refused":
      return "It answers, and may not take part.";
    default:
      return "It was never heard of.";
  }
}

function NodeCard({ node }: { node: Node }) {
  const live = useLive();
  const vms = vmsOf(live).filter((vm) => vm.spec.node === node.path);
  const { status } = node;
  const total = status.memory_mib ?? 0;
  const used = Math.max(0, total - (status.memory_free_mib ?? 0));
  const percent = total > 0 ? Math.round((used / total) * 100) : 0;
  return (
    <Card isFullHeight>
      <CardHeader>
        <Flex columnGap={{ default: "columnGapMd" }} alignItems={{ default: "alignItemsCenter" }}>
          <CardTitle component="h2">{node.path}</CardTitle>
          <NodeLabel node={node} />
          {node.spec.cordoned && <Label isCompact>cordoned</Label>}
        </Flex>
      </CardHeader>
      <CardBody>
        <p className="vbm-faint">{reason(node)}</p>
        {[...(status.reason ? [status.reason] : []), ...(status.warnings ?? [])].map((said) => (
          <Alert key={said.what} isInline variant="warning" title={sentence(said.what)} className="vbm-problem">
            <ErrorBody why={said.why} fix={said.fix} />
          </Alert>
        ))}
        {total > 0 && (
          <Progress
            className="vbm-memory"
            value={percent}
            title={`Memory: ${mib(used)} of ${mib(total)} in use`}
            size="sm"
            measureLocation={ProgressMeasureLocation.outside}
            {...(percent > MEMORY_WARN_PERCENT ? { variant: ProgressVariant.warning } : {})}
          />
        )}
        <Facts
          facts={[
            ["Processors", status.cpus],
            ["Agent", status.version && `version ${status.version}`],
            ["Address", status.underlay && `${status.underlay} (among the nodes)`],
            ["Shared storage", status.shared_storage],
            ["Last heard of", <Ago at={status.seen_at} />],
            [
              "Machines",
              vms.length === 0
                ? "none"
                : vms.map((vm, at) => (
                    <span key={vm.id}>
                      {at > 0 && ", "}
                      <Link to={{ page: "vm", name: vm.name, tab: "overview" }}>{vm.name}</Link>
                    </span>
                  )),
            ],
          ]}
        />
        <h3 className="vbm-subtitle">Drivers</h3>
        {(status.capabilities ?? []).length === 0 && <p className="vbm-faint">It has told of none.</p>}
        {(status.capabilities ?? []).map((can) => (
          <div key={can.driver} className="vbm-driver">
            <Flex columnGap={{ default: "columnGapSm" }} alignItems={{ default: "alignItemsCenter" }}>
              <strong>{can.driver}</strong>
              <span className="vbm-faint">{can.version}</span>
              {can.problem ? <ToneLabel tone="bad" text="cannot be used" /> : <ToneLabel tone="good" text="usable" />}
            </Flex>
            {can.accelerator && (
              <p>
                <strong>{can.accelerator.name}</strong>: {can.accelerator.reason}
              </p>
            )}
            {(status.missing ?? [])
              .filter((lack) => lack.driver === can.driver)
              .map((lack) => (
                <p key={lack.facet} className="vbm-faint">
                  No {FACETS[lack.facet]}: {lack.why}
                </p>
              ))}
            {can.problem && (
              <>
                <p>{sentence(can.problem.what)}</p>
                <ErrorBody why={can.problem.why} fix={can.problem.fix} />
              </>
            )}
          </div>
        ))}
      </CardBody>
    </Card>
  );
}
