-- Hand back what dead workers held: messages that were delivered and never acknowledged.
-- KEYS: hash of such messages, index of them, lease, fence.
-- ARGV: cursor into the hash, how many to look at, token of the lease (empty: none is needed),
-- fencing number, the present as in an eta, most deaths a task may cause (0: no limit), prefix of
-- lists, separator of priorities, how many priorities, each of them, how many orphans, for each its
-- task id and the time after which it may have been delivered to another, then for each queue its
-- name, the key of its claim, and whose claim is no hindrance (empty: only if nobody's).
-- Returns the next cursor, how many were handed back, and tag, message, tag, ... of those that
-- have caused too many deaths; these stay where they are.
local token, now, most, prefix, separator = ARGV[3], ARGV[5], tonumber(ARGV[6]), ARGV[7], ARGV[8]
if token ~= '' and not is_permitted(KEYS[3], token, KEYS[4], ARGV[4]) then
  return {'0', 0, {}}
end
local steps = {}
for i = 1, tonumber(ARGV[9]) do
  steps[i] = tonumber(ARGV[9 + i])
end
local first, orphans = 10 + #steps, {}
local last = first + 2 * tonumber(ARGV[first])
for i = first + 1, last, 2 do
  orphans[ARGV[i]] = tonumber(ARGV[i + 1])
end
local is_dead = {}
for i = last + 1, #ARGV, 3 do
  local owner = redis.call('GET', ARGV[i + 1])
  is_dead[ARGV[i]] = not owner or owner == ARGV[i + 2]
end

local function list_of(queue, priority)
  local step = steps[1]
  for _, candidate in ipairs(steps) do
    if candidate <= (tonumber(priority) or 0) then
      step = candidate
    end
  end
  return step == 0 and prefix .. queue or prefix .. queue .. separator .. step
end

-- A plain replacement of the last occurrence: what users have put in comes before it.
local function replaced(text, old, new)
  local from, start = 0, nil
  while true do
    local first = text:find(old, from + 1, true)
    if not first then
      break
    end
    from, start = first, first
  end
  return start and text:sub(1, start - 1) .. new .. text:sub(start + #old)
end

-- Marked as Celery's own transport does, with another delivery tag: a worker that was only cut
-- off must not acknowledge what another has by then. The tag counts how often a worker died that
-- held the task, unless it was not yet to run.
local function deaths(decoded, tag)
  local count = tonumber(tag:match('%.r(%d+)%.%d+$') or '0')
  local eta = type(decoded.headers) == 'table' and decoded.headers.eta
  return (type(eta) ~= 'string' or eta < now) and count + 1 or count
end

local function marked(message, decoded, tag, count)
  local base = tag:match('^(.-)%.r%d+%.%d+$') or tag
  local time = redis.call('TIME')
  local renewed = string.format('%s.r%d.%s%06d', base, count, time[1], time[2])
  local text = replaced(message, '"delivery_tag": "' .. tag .. '"',
    '"delivery_tag": "' .. renewed .. '"')
  if text and not decoded.properties.delivery_info.redelivered then
    text = replaced(text, '"delivery_info": {', '"delivery_info": {"redelivered": true, ')
  end
  local check = text and cjson.decode(text)
  if check and check.properties.delivery_tag == renewed
    and check.properties.delivery_info.redelivered == true then
    return text
  end
end

local function decoded_in(text)
  local message = text:match('^%[(.*), "[^"\\]*", "[^"\\]*"%]$')
  local is_sound, decoded = pcall(cjson.decode, message or '')
  return message, is_sound and type(decoded) == 'table' and decoded or nil
end

-- Delivered to nobody else since its worker was last heard of.
local function is_orphan(tag, text)
  if not next(orphans) then
    return false
  end
  local _, decoded = decoded_in(text)
  local headers = decoded and decoded.headers
  local latest = type(headers) == 'table' and type(headers.id) == 'string' and orphans[headers.id]
  local delivered = latest and redis.call('ZSCORE', KEYS[2], tag)
  return delivered and tonumber(delivered) <= latest
end

local found = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local handed, deadly = 0, {}
for i = 1, #found[2], 2 do
  local tag, text = found[2][i], found[2][i + 1]
  local queue = text:sub(-1024):match(', "([^"\\]*)"%]$')
  if queue and (is_dead[queue] or is_orphan(tag, text)) then
    local message, decoded = decoded_in(text)
    if decoded then
      local count = deaths(decoded, tag)
      if most > 0 and count >= most then
        deadly[#deadly + 1] = tag
        deadly[#deadly + 1] = message
      else
        local is_markable, changed = pcall(marked, message, decoded, tag, count)
        local properties = type(decoded.properties) == 'table' and decoded.properties or {}
        -- At the end that is served next.
        redis.call('RPUSH', list_of(queue, properties.priority),
          is_markable and changed or message)
        redis.call('ZREM', KEYS[2], tag)
        redis.call('HDEL', KEYS[1], tag)
        handed = handed + 1
      end
    end
  end
end
return {found[1], handed, deadly}
