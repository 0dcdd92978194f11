// What every pixel of a slice shows: the scan, organs and their outlines over it, attribution over both.
// The palette is that of layers.py, handed over by app.js before the first drawing.

const STOPS = 5;

export const SHADER = `#version 300 es
precision highp int;
precision highp float;
uniform highp sampler3D scan;
uniform highp sampler3D attribution;
uniform highp usampler3D labels;
uniform highp sampler2D organs;
uniform mat4 attributionPlace;
uniform mat4 labelsPlace;
uniform vec2 hounsfield; // the window's lower end and its width
uniform vec4 strengths; // opacity of the attribution, of fills, of outlines; screen pixels per CSS pixel
uniform int isSigned;
uniform int target;
uniform vec3 positive[${STOPS}];
uniform vec3 negative[${STOPS}];
uniform vec3 absolute[${STOPS}];
in vec3 texPos;
out vec4 color;

bool outside(vec3 place) {
  return any(lessThan(place, vec3(0.0))) || any(greaterThan(place, vec3(1.0)));
}

uint labelAt(vec3 here) {
  vec3 place = (labelsPlace * vec4(here, 1.0)).xyz;
  ivec3 size = textureSize(labels, 0);
  return outside(place) ? 0u : texelFetch(labels, min(ivec3(place * vec3(size)), size - 1), 0).r;
}

vec4 organ(uint label) {
  bool known = label > 0u && int(label) < textureSize(organs, 0).x;
  return known ? texelFetch(organs, ivec2(int(label), 0), 0) : vec4(0.0);
}

vec3 along(vec3 stops[${STOPS}], float strength) {
  float at = strength * ${STOPS - 1}.0;
  int low = min(int(at), ${STOPS - 2});
  return mix(stops[low], stops[low + 1], at - float(low));
}

// The outline of an organ lies on its own side; a dark casing on the other keeps it visible on bone.
vec4 outline(uint label, vec4 mine) {
  float wide = strengths.w * (int(label) == target ? 2.0 : 1.1);
  vec3 right = dFdx(texPos), up = dFdy(texPos);
  vec4 found = vec4(0.0);
  for (int side = 0; side < 4; side++) {
    vec3 way = side < 2 ? right : up;
    uint other = labelAt(texPos + (side % 2 == 0 ? wide : -wide) * way);
    if (other == label) continue;
    if (mine.a > 0.0) return vec4(mine.rgb, 1.0);
    if (organ(other).a > 0.0) found = vec4(0.0, 0.0, 0.0, 0.55);
  }
  return found;
}

void main() {
  float grey = clamp((texture(scan, texPos).r - hounsfield.x) / hounsfield.y, 0.0, 1.0);
  color = vec4(vec3(grey), 1.0);
  uint label = labelAt(texPos);
  vec4 mine = organ(label);
  color.rgb = mix(color.rgb, mine.rgb, mine.a * strengths.y);
  vec3 place = (attributionPlace * vec4(texPos, 1.0)).xyz;
  float value = outside(place) ? 0.0 : texture(attribution, place).r;
  float strength = min(abs(value), 1.0);
  vec3 tint = isSigned == 0 ? along(absolute, strength)
    : value > 0.0 ? along(positive, strength) : along(negative, strength);
  color.rgb = mix(color.rgb, tint, pow(strength, 0.6) * strengths.x);
  if (strengths.z > 0.0) {
    vec4 line = outline(label, mine);
    color.rgb = mix(color.rgb, line.rgb, line.a * strengths.z);
  }
}`;
