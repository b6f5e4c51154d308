// The rows of the dashboard, drawn by Grafana's own components from results.json.

import 'uplot/dist/uPlot.min.css';

import {
  createTheme,
  getDisplayValueAlignmentFactors,
  getFieldDisplayValues,
  ThemeContext,
  type DataFrame,
} from '@grafana/data';
import { initPluginTranslations } from '@grafana/i18n';
import { BarGauge, BigValue, GlobalStyles, PanelChrome, TimeSeries, VizRepeater } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { createRoot } from 'react-dom/client';

import { framesOf, timeRange, type Panel } from './frames';

interface Mark {
  time: number;
  colour: string;
}
interface Results {
  theme: 'light' | 'dark';
  from: number;
  to: number;
  marks: Mark[];
  rows: Array<{ slug: string; title: string; panels: Panel[] }>;
}

const WIDTH = 1440;
const CELL = 30;
const GAP = 8;
const COLUMN = (WIDTH + GAP) / 24;

declare global {
  interface Window {
    results: Results;
    drawn: boolean;
  }
}

const { results } = window;
const theme = createTheme({ colors: { mode: results.theme } });
const range = timeRange(results.from, results.to);

function displayed(panel: Panel, data: DataFrame[]) {
  return getFieldDisplayValues({
    data,
    fieldConfig: panel.fieldConfig,
    reduceOptions: panel.options.reduceOptions,
    replaceVariables: (text) => text,
    theme,
    timeZone: 'utc',
  });
}

function drawMarks(plot: any) {
  const { ctx, bbox } = plot;
  for (const { time, colour } of results.marks) {
    const x = plot.valToPos(time, 'x', true);
    if (x >= bbox.left && x <= bbox.left + bbox.width) {
      ctx.save();
      ctx.strokeStyle = theme.visualization.getColorByName(colour);
      ctx.setLineDash([4, 4]);
      ctx.lineWidth = 1.5;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      ctx.restore();
    }
  }
}

function Content({ panel, data, width, height }: { panel: Panel; data: DataFrame[]; width: number; height: number }) {
  const { options } = panel;
  const noValue = panel.fieldConfig.defaults.noValue;
  if (panel.type !== 'stat' && !data.some((frame) => frame.length > 0)) {
    return <div style={{ height, display: 'grid', placeItems: 'center' }}>{noValue}</div>;
  }
  switch (panel.type) {
    case 'timeseries':
      return (
        <TimeSeries
          frames={data}
          timeRange={range}
          timeZone="utc"
          width={width}
          height={height}
          legend={options.legend}
          structureRev={1}
        >
          {(builder) => {
            builder.addHook('draw', drawMarks);
            return null;
          }}
        </TimeSeries>
      );
    case 'stat':
      return (
        <VizRepeater
          getValues={() => displayed(panel, data)}
          getAlignmentFactors={getDisplayValueAlignmentFactors}
          renderValue={({ value, width, height, alignmentFactors, count }) => (
            <BigValue
              value={value.display}
              count={count}
              alignmentFactors={alignmentFactors}
              textMode={options.textMode}
              colorMode={options.colorMode}
              graphMode={options.graphMode}
              justifyMode={options.justifyMode}
              wideLayout={options.wideLayout}
              width={width}
              height={height}
              theme={theme}
            />
          )}
          width={width}
          height={height}
          source={data}
          autoGrid
          itemSpacing={3}
          renderCounter={1}
          orientation={options.orientation}
        />
      );
    case 'bargauge':
      return (
        <VizRepeater
          getValues={() => displayed(panel, data)}
          getAlignmentFactors={getDisplayValueAlignmentFactors}
          renderValue={({ value, width, height, alignmentFactors, orientation, count }) => (
            <BarGauge
              value={value.display}
              field={value.field}
              display={value.view?.getFieldDisplayProcessor(value.colIndex!)}
              alignmentFactors={count > 1 ? alignmentFactors : undefined}
              displayMode={options.displayMode}
              valueDisplayMode={options.valueMode}
              namePlacement={options.namePlacement}
              showUnfilled={options.showUnfilled}
              orientation={orientation}
              width={width}
              height={height}
              text={options.text}
              itemSpacing={8}
              lcdCellWidth={12}
              theme={theme}
            />
          )}
          width={width}
          height={height}
          source={data}
          itemSpacing={8}
          minVizHeight={options.minVizHeight}
          maxVizHeight={options.maxVizHeight}
          renderCounter={1}
          orientation={options.orientation}
        />
      );
    default:
      return (
        <TableNG
          data={data[0]}
          width={width}
          height={height}
          cellHeight={options.cellHeight}
          fieldConfig={panel.fieldConfig}
          noValue={noValue}
          structureRev={1}
        />
      );
  }
}

function Placed({ panel, data, top }: { panel: Panel; data: DataFrame[]; top: number }) {
  const { x, y, w, h } = panel.gridPos;
  const width = w * COLUMN - GAP;
  const height = h * (CELL + GAP) - GAP;
  return (
    <div style={{ position: 'absolute', left: x * COLUMN, top: (y - top) * (CELL + GAP), width, height }}>
      <PanelChrome title={panel.title} description={panel.description} width={width} height={height}>
        {(innerWidth, innerHeight) => <Content panel={panel} data={data} width={innerWidth} height={innerHeight} />}
      </PanelChrome>
    </div>
  );
}

async function draw() {
  await initPluginTranslations('figures');
  const rows = await Promise.all(
    results.rows.map(async (row) => ({
      ...row,
      frames: await Promise.all(row.panels.map((panel) => framesOf(panel, theme))),
      top: Math.min(...row.panels.map((panel) => panel.gridPos.y)),
      bottom: Math.max(...row.panels.map((panel) => panel.gridPos.y + panel.gridPos.h)),
    }))
  );
  createRoot(document.getElementById('rows')!).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      {rows.map((row) => (
        <section
          id={row.slug}
          key={row.slug}
          style={{ width: WIDTH + 2 * GAP, padding: GAP, background: theme.colors.background.canvas }}
        >
          <h4 style={{ margin: 0, height: CELL, lineHeight: `${CELL}px` }}>{row.title}</h4>
          <div style={{ position: 'relative', height: (row.bottom - row.top) * (CELL + GAP) - GAP }}>
            {row.panels.map((panel, index) => (
              <Placed key={panel.id} panel={panel} data={row.frames[index]} top={row.top} />
            ))}
          </div>
        </section>
      ))}
    </ThemeContext.Provider>
  );
  // After layout effects, fonts and the canvases of all graphs.
  await document.fonts.ready;
  setTimeout(() => requestAnimationFrame(() => (window.drawn = true)), 1500);
}

draw();
