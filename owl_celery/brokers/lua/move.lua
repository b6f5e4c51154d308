-- Move waiting messages to another queue: none is lost or doubled whatever happens to the caller.
-- KEYS: list to take from, list to put to. ARGV: name of the new queue, most messages to move.
-- Returns how many were moved.
--
-- Consumers take from the right, so the oldest message goes first and lands behind what waits
-- there. The message stays the text it is: decoding and encoding it anew would damage large
-- integers and empty lists. Only the destination in "delivery_info" is rewritten, to which the
-- message returns when its worker is lost; it comes after everything a user has put in.
local function redirected(message, queue)
  local from, start = 0, nil
  while true do
    local first, last = message:find('"delivery_info":%s*{', from + 1)
    if not first then
      break
    end
    from, start = first, last
  end
  local finish = start and message:find('}', start, true)
  if not finish then
    return message
  end
  local info = message:sub(start, finish)
  local exchanges, keys
  info, exchanges = info:gsub('("exchange":%s*)"[^"\\]*"', function(name) return name .. '""' end)
  info, keys = info:gsub('("routing_key":%s*)"[^"\\]*"', function(name)
    return name .. cjson.encode(queue)
  end)
  local changed = message:sub(1, start - 1) .. info .. message:sub(finish + 1)
  local is_sound, decoded = pcall(cjson.decode, changed)
  if exchanges ~= 1 or keys ~= 1 or not is_sound
    or decoded.properties.delivery_info.routing_key ~= queue then
    return message
  end
  return changed
end

local moved = 0
while moved < tonumber(ARGV[2]) do
  local message = redis.call('LINDEX', KEYS[1], -1)
  if not message then
    break
  end
  redis.call('LPUSH', KEYS[2], redirected(message, ARGV[1]))
  redis.call('RPOP', KEYS[1])
  moved = moved + 1
end
return moved
