// What a dashboard file may hold, from Grafana's own types. They describe what Grafana has in
// memory; in a file, an enumeration is the text or number that stands for it.

import type { AnnotationQuery, Dashboard, Panel, RowPanel, VariableModel } from '@grafana/schema';
import type * as bargauge from '@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen';
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as table from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type * as timeseries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

type Written<T> = T extends string
  ? `${T}`
  : T extends (infer Item)[]
    ? Written<Item>[]
    : T extends object
      ? { [Key in keyof T]: Written<T[Key]> }
      : T;

interface PrometheusSource {
  type: 'prometheus';
  uid: '${datasource}';
}

// Of the Prometheus data source, which is a plugin and not in the schema.
interface PrometheusQuery {
  refId: string;
  datasource: PrometheusSource;
  editorMode: 'code' | 'builder';
  expr: string;
  legendFormat: string;
  format: 'time_series' | 'table' | 'heatmap';
  instant: boolean;
  range: boolean;
}

type PanelOf<Kind extends string, Options, Custom> = Required<
  Pick<Panel, 'id' | 'title' | 'description' | 'gridPos' | 'transformations'>
> & {
  type: Kind;
  datasource: PrometheusSource;
  targets: PrometheusQuery[];
  fieldConfig: Omit<NonNullable<Panel['fieldConfig']>, 'defaults'> & {
    defaults: Omit<NonNullable<Panel['fieldConfig']>['defaults'], 'custom'> & { custom: Custom };
  };
  options: Options;
};

type AnyPanel =
  | PanelOf<'bargauge', bargauge.Options, Record<string, never>>
  | PanelOf<'stat', stat.Options, Record<string, never>>
  | PanelOf<'table', table.Options, table.FieldConfig>
  | PanelOf<'timeseries', timeseries.Options, timeseries.FieldConfig>
  | RowPanel;

// Each again of a data source: how it finds its marks, and the values of a variable.
interface PrometheusAnnotation extends AnnotationQuery {
  expr?: string;
  step?: string;
  titleFormat?: string;
  textFormat?: string;
  tagKeys?: string;
  useValueForTime?: boolean;
}

export type DashboardFile = Written<
  Omit<Dashboard, 'annotations' | 'panels' | 'templating'> & {
    annotations: { list: PrometheusAnnotation[] };
    panels: AnyPanel[];
    templating: { list: VariableModel[] };
  }
>;
