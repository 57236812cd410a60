"""The dashboard's style sheet.

Greys are the page's own text colour, made fainter, so that a theme needs no telling; the colours are of middle
lightness and can be read on light and dark.
"""

STYLE = """<style>
.kit{max-width:980px;padding:2px 1px 6px;font:14px/1.45 var(--jp-ui-font-family,system-ui,sans-serif);
font-variant-numeric:tabular-nums;container-type:inline-size}
.kit *{box-sizing:border-box}
.kit b{font-weight:600}
.kit-mute,.kit-note,.kit-name{opacity:.72}
.kit-head{display:flex;flex-wrap:wrap;gap:2px 10px;align-items:baseline;margin-bottom:10px}
.kit-head b{font-size:17px}
.kit-head>:last-child{margin-left:auto}
.kit-dot{width:9px;height:9px;border-radius:50%;background:#8a8f98;align-self:center}
.kit-dot.kit-run{background:#2fa866}.kit-dot.kit-bad{background:#e5484d}.kit-dot.kit-rest{background:#e8a13a}
.kit-row{display:grid;grid-template:"name bar count" auto ". note note" auto/3.4em 1fr minmax(4.5em,max-content);
gap:1px 12px;align-items:center;margin-bottom:5px}
.kit-row>b{grid-area:count;text-align:right}.kit-row>.kit-bar{grid-area:bar}.kit-row>.kit-note{grid-area:note}
.kit-bar{position:relative;height:10px;border-radius:5px;background:rgba(128,128,128,.2);overflow:hidden}
.kit-bar>i{position:absolute;inset:0 auto 0 0;background:#4a86f7;border-radius:5px}
.kit-bar>u{position:absolute;top:0;bottom:0;width:1px;background:currentColor;opacity:.55}
.kit-note{font-size:12.5px}
.kit-tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(148px,1fr));gap:8px;margin:12px 0}
.kit-tile{border:1px solid rgba(128,128,128,.28);border-radius:7px;padding:7px 11px 8px;min-width:0}
.kit-tile>div{overflow-wrap:anywhere}
.kit-name{font-size:12px}
.kit-value{font-size:19px;line-height:1.3;font-weight:600}
.kit-warn{border-left:3px solid #e8a13a;background:rgba(232,161,58,.13);border-radius:0 5px 5px 0;
padding:5px 10px;margin:6px 0;overflow-wrap:anywhere}
.kit-error{border:1px solid #e5484d;border-left-width:5px;background:rgba(229,72,77,.09);border-radius:5px;
padding:9px 13px;margin:6px 0;overflow-wrap:anywhere}
.kit-error>b{font-size:16px}
.kit a{color:var(--jp-content-link-color,#3b78e7)}
.kit-charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(330px,100%),1fr));gap:12px 26px;
margin:14px 0 4px}
.kit-legend{display:flex;flex-wrap:wrap;gap:0 13px;font-size:12.5px;min-height:20px}
.kit-legend i{display:inline-block;width:9px;height:9px;border-radius:2px;margin-right:5px}
.kit-legend i.kit-here{width:0;height:11px;border-left:1px dashed currentColor;border-radius:0;vertical-align:-1px}
.kit-legend i.kit-dash{width:14px;height:0;border-top:2px dashed currentColor;border-radius:0;vertical-align:3px}
.kit-chart{display:flex;flex-direction:column;justify-content:space-between}
.kit-plot{position:relative;height:150px;margin:5px 4px 19px 40px;font-size:11px}
.kit-none{display:flex;align-items:center;justify-content:center;border:1px dashed rgba(128,128,128,.4);
border-radius:5px;margin-left:0;opacity:.6}
.kit .kit-plot svg{position:absolute;inset:0;width:100%;height:100%!important;max-width:none;overflow:hidden}
.kit-plot path{fill:none;stroke-width:1.8;vector-effect:non-scaling-stroke;stroke-linejoin:round;stroke-linecap:round}
.kit-plot path.kit-grid{stroke:currentColor;opacity:.13;stroke-width:1}
.kit-plot path.kit-mark{stroke:currentColor;opacity:.5;stroke-width:1;stroke-dasharray:3 3;stroke-linecap:butt}
.kit-y,.kit-x{position:absolute;opacity:.66;line-height:1;white-space:nowrap}
.kit-y{right:calc(100% + 7px);transform:translateY(50%)}
.kit-x{top:calc(100% + 6px);transform:translateX(-50%)}
.kit-best{position:absolute;width:9px;height:9px;transform:translate(-50%,50%);border-radius:50%;
border:2px solid #4a86f7}
.kit-log{font:12px/1.5 var(--jp-code-font-family,ui-monospace,monospace);opacity:.8;margin-top:8px;
white-space:pre-wrap;overflow-wrap:anywhere}
.kit-files{display:grid;grid-template-columns:max-content max-content 1fr;gap:2px 16px;align-items:baseline}
.kit-files>.kit-sum{grid-column:1/4;font:11px/1.4 var(--jp-code-font-family,ui-monospace,monospace);opacity:.62;
overflow-wrap:anywhere;margin-bottom:6px}
.kit pre{font:12px/1.45 var(--jp-code-font-family,ui-monospace,monospace);white-space:pre-wrap;overflow-wrap:anywhere;
max-height:330px;overflow:auto;margin:6px 0;background:none;color:inherit;border:0;padding:0}
.kit summary{cursor:pointer;opacity:.8;margin-top:4px}
.kit .kit-table{border-collapse:collapse;font-size:12.5px;width:auto;margin:0}
.kit .kit-table td,.kit .kit-table th{border:0;background:none;padding:2px 9px 2px 0;text-align:right;
font-weight:400;color:inherit}
.kit .kit-table th{opacity:.7}
.kit .kit-table tr{background:none}
.kit .kit-table :is(td,th){white-space:nowrap}
.kit .kit-table :is(td,th):first-child{text-align:left;max-width:190px;overflow:hidden;text-overflow:ellipsis}
.kit .kit-matrix :is(td,th){padding:3px 6px;min-width:34px;text-align:center}
.kit .kit-matrix th span{display:inline-block;max-width:64px;overflow:hidden;text-overflow:ellipsis;
white-space:nowrap;vertical-align:bottom}
.kit-scroll{max-height:430px;overflow:auto}
.kit-picture{max-width:100%;max-height:560px;border-radius:6px;display:block;margin:4px 0 10px}
@container (max-width:460px){.kit-row{grid-template:"name count" auto "bar bar" auto "note note" auto/1fr auto}
.kit-files{grid-template-columns:max-content 1fr}.kit-files>.kit-sum,.kit-files>.kit-note{grid-column:1/3}}
</style>"""
