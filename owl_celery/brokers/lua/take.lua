-- Move one waiting message to a queue in which nothing waits.
-- KEYS: list to take from, list to put to, lease, fence, lists of the new queue.
-- ARGV: queue to take from, new queue, decision id of the message, how many messages are to be
-- taken before it, token of the lease, fencing number.
-- Returns 1, or 0 when nothing was moved: the message has gone, is not ours to move, something
-- waits there, or the lease is another's.
local NEAR = 16
local source, queue, decision, position = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
if not is_permitted(KEYS[3], ARGV[5], KEYS[4], ARGV[6]) then
  return 0
end
for i = 5, #KEYS do
  if redis.call('LLEN', KEYS[i]) > 0 then
    return 0
  end
end

local function is_movable(message)
  local decoded = cjson.decode(message)
  local header = decoded.headers.owl
  if type(header) ~= 'table' and type(decoded.headers.headers) == 'table' then
    header = decoded.headers.headers.owl
  end
  return type(header) == 'table' and header.d == decision
    and header.a ~= 'user' and header.a ~= 'celery'
    and (decoded.headers.eta == nil or decoded.headers.eta == cjson.null)
    and decoded.properties.delivery_info.routing_key == source
end

local mark = '"d": ' .. cjson.encode(decision)
-- Since it was seen, messages before it may have been taken.
for before = position, math.max(position - NEAR, 0), -1 do
  local message = redis.call('LINDEX', KEYS[1], -1 - before)
  if message and message:find(mark, 1, true) then
    -- Whoever writes to the broker may have written anything.
    local is_sound, movable = pcall(is_movable, message)
    local changed = is_sound and movable and redirected(message, queue) or message
    if changed == message then
      return 0
    end
    redis.call('LPUSH', KEYS[2], changed)
    redis.call('LREM', KEYS[1], -1, message)
    return 1
  end
end
return 0
