// From what Prometheus answers to what Grafana's panels show, by Grafana's own rules.

import {
  applyFieldOverrides,
  cacheFieldDisplayNames,
  createFieldConfigRegistry,
  dateTime,
  displayNameOverrideProcessor,
  FieldType,
  identityOverrideProcessor,
  standardFieldConfigEditorRegistry,
  standardTransformers,
  standardTransformersRegistry,
  toDataFrame,
  transformDataFrame,
  type DataFrame,
  type GrafanaTheme2,
} from '@grafana/data';
import { lastValueFrom } from 'rxjs';

type Labels = Record<string, string>;
type Point = [number, string];
export interface Series {
  metric: Labels;
  value?: Point;
  values?: Point[];
}
export interface Panel {
  id: number;
  type: string;
  title: string;
  description: string;
  gridPos: { x: number; y: number; w: number; h: number };
  targets: Array<{ refId: string; legendFormat: string; format: string }>;
  transformations: Array<{ id: string; options: Record<string, unknown> }>;
  fieldConfig: { defaults: any; overrides: any[] };
  options: any;
  results: Series[][];
}

const STANDARD = ['unit', 'min', 'max', 'decimals', 'displayName', 'color', 'thresholds', 'mappings', 'noValue'];
const CUSTOM = [
  'drawStyle', 'lineInterpolation', 'lineWidth', 'fillOpacity', 'showPoints', 'spanNulls', 'stacking',
  'axisPlacement', 'lineStyle', 'align', 'inspect', 'cellOptions', 'width', 'minWidth',
];

function option(path: string, isCustom: boolean): any {
  return {
    id: path,
    path,
    name: path,
    isCustom,
    editor: () => null,
    override: () => null,
    process: path === 'displayName' ? displayNameOverrideProcessor : identityOverrideProcessor,
    shouldApply: () => true,
    settings: {},
  };
}

standardFieldConfigEditorRegistry.setInit(() => STANDARD.map((path) => option(path, false)));
standardTransformersRegistry.setInit(() => {
  const transformer: any = standardTransformers.groupingToMatrixTransformer;
  const images = { imageDark: '', imageLight: '' };
  return [{ ...transformer, ...images, transformation: () => Promise.resolve(transformer), editor: () => null }];
});

const registry = createFieldConfigRegistry(
  {
    useCustomConfig: (builder) => {
      for (const path of CUSTOM) {
        builder.addCustomEditor(option(path, true));
      }
    },
  },
  'figures'
);

function nameOf(labels: Labels, format: string): string {
  if (format === '__auto') {
    return Object.entries(labels).map(([name, value]) => `${name}="${value}"`).join(', ') || 'Value';
  }
  return format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => labels[label] ?? '');
}

function seriesFrame(series: Series, panel: Panel, index: number): DataFrame {
  const points = series.values ?? [series.value!];
  const target = panel.targets[index];
  return toDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: points.map(([time]) => time * 1000), config: {} },
      {
        name: 'Value',
        type: FieldType.number,
        labels: series.metric,
        values: points.map(([, value]) => Number(value)),
        config: { displayNameFromDS: nameOf(series.metric, target.legendFormat) },
      },
    ],
  });
}

function tableFrame(answer: Series[], refId: string): DataFrame {
  const labels = [...new Set(answer.flatMap((series) => Object.keys(series.metric)))].sort();
  return toDataFrame({
    refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: answer.map((s) => s.value![0] * 1000), config: {} },
      ...labels.map((label) => ({
        name: label,
        type: FieldType.string,
        values: answer.map((s) => s.metric[label] ?? ''),
        config: {},
      })),
      { name: 'Value', type: FieldType.number, values: answer.map((s) => Number(s.value![1])), config: {} },
    ],
  });
}

export async function framesOf(panel: Panel, theme: GrafanaTheme2): Promise<DataFrame[]> {
  const raw = panel.results.flatMap((answer, index) =>
    panel.targets[index].format === 'table'
      ? [tableFrame(answer, panel.targets[index].refId)]
      : answer.map((series) => seriesFrame(series, panel, index))
  );
  const data = await lastValueFrom(transformDataFrame(panel.transformations, raw));
  const frames = applyFieldOverrides({
    data,
    fieldConfig: panel.fieldConfig,
    fieldConfigRegistry: registry,
    replaceVariables: (text) => text,
    theme,
    timeZone: 'utc',
  });
  cacheFieldDisplayNames(frames);
  return frames;
}

export function timeRange(from: number, to: number) {
  const ends = { from: dateTime(from), to: dateTime(to) };
  return { ...ends, raw: ends };
}
