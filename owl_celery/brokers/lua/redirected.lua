-- The message with another destination; put in front of the scripts that move messages.
--
-- It stays the text it is: decoding and encoding it anew would damage large integers and empty
-- lists. Only the destination in "delivery_info" is rewritten, to which the message returns when
-- its worker is lost; it comes after everything a user has put in.
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
  local is_sound, key = pcall(function()
    return cjson.decode(changed).properties.delivery_info.routing_key
  end)
  if exchanges ~= 1 or keys ~= 1 or not is_sound or key ~= queue then
    return message
  end
  return changed
end
