import { Breadcrumb, BreadcrumbItem, Content, Flex, FlexItem, PageSection, Title } from "@patternfly/react-core";
import { type ReactNode, useEffect } from "react";
import { Link } from "../navigation";
import type { Route } from "../routes";

interface Props {
  title: string;
  /** What stands beside the title. */
  badge?: ReactNode;
  about?: ReactNode;
  up?: { to: Route; text: string };
  actions?: ReactNode;
  children?: ReactNode;
}

/** The head of a place: where it is, what it is, what can be done. */
export function PageHeader({ title, badge, about, up, actions, children }: Props) {
  useEffect(() => {
    document.title = `${title} · VBM`;
  }, [title]);
  return (
    <PageSection>
      {up && (
        <Breadcrumb className="vbm-breadcrumb">
          <BreadcrumbItem
            render={({ className }) => (
              <Link className={className} to={up.to}>
                {up.text}
              </Link>
            )}
          />
          <BreadcrumbItem isActive>{title}</BreadcrumbItem>
        </Breadcrumb>
      )}
      <Flex alignItems={{ default: "alignItemsCenter" }} columnGap={{ default: "columnGapMd" }}>
        <Title headingLevel="h1" size="2xl">
          {title}
        </Title>
        {badge && <FlexItem>{badge}</FlexItem>}
        {actions && <FlexItem align={{ default: "alignRight" }}>{actions}</FlexItem>}
      </Flex>
      {about && (
        <Content component="p" className="vbm-about">
          {about}
        </Content>
      )}
      {children}
    </PageSection>
  );
}
